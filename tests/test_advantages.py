"""Advantages against float64 loops and hand tables, and what must hold for any rewards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax import advantages as adv
from dcore_jax.errors import UserError
from dcore_jax.regions import Region, RegionValues

# Rewards like the real ones: halves, tool-call scores with denominators, and numbers float32 cannot hold.
REWARDS = st.sampled_from([-3.0, -1.0, 0.0, 0.3, 0.1 + 0.2, 1.0, 2.8, 4.0, 6 * 2 / 7 - 3, 6 * 5 / 9 - 3])
TOKENS = 4
RESPONSES = 8

# Compiled once for every example of a property: the shapes are always RESPONSES by TOKENS.
grpo, dr_grpo, rl_zvp = map(jax.jit, (adv.grpo, adv.dr_grpo, adv.rl_zvp))
da_grpo = jax.jit(adv.da_grpo, static_argnames="trigger")
kl_cov_selection = jax.jit(adv.kl_cov_selection)
zero_variance_groups, has_reward_variance = map(jax.jit, (adv.zero_variance_groups, adv.has_reward_variance))


@st.composite
def batches(draw):
    """(rewards, groups, mask, entropy) with interleaved groups, any ids, and a few padded tokens."""
    count = RESPONSES
    rewards = np.array(draw(st.lists(REWARDS, min_size=count, max_size=count)), np.float32)
    groups = np.array(
        draw(st.lists(st.sampled_from([-7, 0, 3, 5, 10**6]), min_size=count, max_size=count)), np.int32
    )
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    mask = rng.random((count, TOKENS)) < 0.8
    return rewards, groups, mask, rng.uniform(0, 8, (count, TOKENS)).astype(np.float32)


def loop_grpo(rewards, groups, mask, normalise=True):
    """GRPO in float64, one response at a time."""
    out = np.zeros(mask.shape)
    for i, (reward, group) in enumerate(zip(rewards, groups)):
        members = [r for r, g in zip(rewards, groups) if g == group]
        centred = reward - sum(members) / len(members)
        if max(members) - min(members) < 1e-6:
            centred = 0.0
        std = np.std(members, ddof=1) if len(members) > 1 else 0.0
        out[i] = mask[i] * (centred / (std + 1e-6) if normalise else centred)
    return out


@settings(max_examples=60, deadline=None)
@given(batches())
def test_grpo_and_dr_grpo_equal_a_float64_loop(batch):
    rewards, groups, mask, _ = batch
    np.testing.assert_allclose(
        grpo(rewards, groups, mask), loop_grpo(rewards, groups, mask), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        dr_grpo(rewards, groups, mask), loop_grpo(rewards, groups, mask, normalise=False), atol=2e-6
    )


@settings(max_examples=40, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_responses_and_names_of_groups_do_not_matter(batch, random):
    rewards, groups, mask, entropy = batch
    order = list(range(len(rewards)))
    random.shuffle(order)
    renamed = np.array([{-7: 5, 0: -1, 3: 77, 5: 0, 10**6: 2}[int(g)] for g in groups], np.int32)
    for function in (da_grpo, rl_zvp):
        straight = np.asarray(function(rewards, groups, entropy, mask))
        shuffled = function(rewards[order], renamed[order], entropy[order], mask[order])
        np.testing.assert_allclose(shuffled, straight[order], atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_advantages_of_a_group_have_mean_zero_and_padding_has_none(batch):
    rewards, groups, mask, entropy = batch
    full = np.asarray(grpo(rewards, groups, np.ones_like(mask)))
    for group in set(groups.tolist()):
        assert abs(full[groups == group].mean()) < 1e-5
    poisoned = np.where(mask, entropy, np.nan).astype(np.float32)
    for values in (
        grpo(rewards, groups, mask),
        da_grpo(rewards, groups, poisoned, mask),
        rl_zvp(rewards, groups, poisoned, mask),
    ):
        assert np.all(np.asarray(values)[~mask] == 0) and np.all(np.isfinite(values))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, RESPONSES), st.floats(-1e3, 1e3, width=32), st.integers(0, 2**16))
def test_equal_rewards_give_grpo_exactly_nothing_and_da_grpo_its_bonus(size, reward, seed):
    entropy = np.random.default_rng(seed).uniform(0.1, 9, (RESPONSES, TOKENS)).astype(np.float32)
    ones, groups = np.ones((RESPONSES, TOKENS), bool), (np.arange(RESPONSES) >= size).astype(np.int32)
    rewards = np.where(groups == 0, reward, np.arange(RESPONSES) * 1e3).astype(np.float32)
    assert np.all(np.asarray(grpo(rewards, groups, ones))[:size] == 0)
    bonus = np.minimum(0.1 * entropy, 0.5)[:size]
    np.testing.assert_allclose(np.asarray(da_grpo(rewards, groups, entropy, ones))[:size], bonus, rtol=1e-6)


def test_group_numbers_of_64_bits_stay_apart():
    rewards, mask = np.array([5.0, 5.0, 1.0, 1.0]), np.ones((4, 1))
    assert np.all(np.asarray(adv.grpo(rewards, np.array([0, 0, 2**32, 2**32]), mask)) == 0)


ONE, TWO, FOUR = np.float32(0.1), np.float32(0.2), np.float32(0.4)


@pytest.mark.parametrize(
    "rewards",
    [
        [0.1 + 0.2, 0.3, 0.3],
        # The same parts summed in another order in float32: one unit in the last place apart.
        [float(ONE + TWO + FOUR), float(FOUR + TWO + ONE), 0.7],
        [1 / 3 + 1 / 3 + 1 / 3, 1.0, 0.9999999],
        [2.8] * 3,  # exact, but the mean of three is not
        [6 * (1 / 7) - 3, 6 / 7 - 3, (6 - 21) / 7],
    ],
)
def test_rounding_residue_counts_as_equal(rewards):
    rewards = np.array(rewards, np.float32)
    groups, ones = np.zeros(3, np.int32), np.ones((3, 2))
    assert np.all(np.asarray(grpo(rewards, groups, ones)) == 0)
    assert np.all(np.asarray(da_grpo(rewards, groups, np.ones((3, 2), np.float32), ones)) == np.float32(0.1))


def test_rewards_that_differ_a_little_are_not_equal():
    rewards, groups, ones = np.array([1.0, 1.001]), np.zeros(2, np.int32), np.ones((2, 1))
    assert np.all(np.asarray(da_grpo(rewards, groups, np.ones((2, 1), np.float32), ones)[:, 0]) != 0.1)
    np.testing.assert_allclose(grpo(rewards, groups, ones)[:, 0], [-0.7061, 0.7061], atol=1e-3)


def test_da_grpo_follows_the_table_of_its_equation():
    rewards = np.array(
        [1.0, 1.0, 0.0, 1.0, 2.0]
    )  # a group without variance, and one whose middle is the mean
    groups = np.array([9, 9, 4, 4, 4])
    entropy = np.full((5, 2), 2.0, np.float32)
    entropy[:, 1] = 9.0
    mask = np.ones((5, 2))

    def table(**options):
        return np.round(np.asarray(da_grpo(rewards, groups, entropy, mask, **options)), 5).tolist()

    bonus, up, down = [0.2, 0.5], [1.0, 1.0], [-1.0, -1.0]
    near = pytest.approx
    assert table() == [near(row, abs=1e-5) for row in (bonus, bonus, down, bonus, up)]
    double = [0.4, 1.0]  # min first, then the factor, as adding psi twice does
    assert table(scale=2.0) == [near(row, abs=1e-5) for row in (double, double, down, double, up)]
    assert table(trigger="below") == [near(row, abs=1e-5) for row in (bonus, bonus, bonus, bonus, up)]
    small = [0.02, 0.09]
    assert table(alpha=0.01) == [near(row, abs=1e-5) for row in (small, small, down, small, up)]
    low = [0.2, 0.3]
    assert table(delta=0.3) == [near(row, abs=1e-5) for row in (low, low, down, low, up)]


def test_rl_zvp_raises_correct_and_lowers_wrong_responses_where_rewards_are_equal():
    rewards = np.array([1.0, 1.0, -3.0, -3.0, 0.0, 1.0, 2.0])
    groups = np.array([0, 0, 1, 1, 2, 2, 2])
    entropy = np.tile(np.array([1.0, 4.0, 2.0, 99.0], np.float32), (7, 1))
    mask = np.tile([1, 1, 1, 0], (7, 1))
    got = np.asarray(rl_zvp(rewards, groups, entropy, mask, alpha=0.1))
    np.testing.assert_allclose(got[0], [0.1, 0.4, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(got[2], [-0.3, 0, -0.2, 0], atol=1e-6)  # the padded 99 is not the maximum
    np.testing.assert_allclose(got[4:, 0], [-1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(rl_zvp(rewards, groups, entropy, mask, scale=2.0)[0], 2 * got[0], atol=1e-6)
    np.testing.assert_allclose(
        got[5], 0, atol=1e-5
    )  # at the mean of a group that varies: GRPO's, unless told otherwise
    everywhere = adv.rl_zvp(rewards, groups, entropy, mask, trigger="zero")
    np.testing.assert_allclose(everywhere[5], [0.1, 0.4, 0.2, 0], atol=1e-6)
    # What is right is not always what earns more than 0.
    judged = rl_zvp(rewards, groups, entropy, mask, correct=np.array([False, True, True] + [False] * 4))
    np.testing.assert_allclose(judged[0], [-0.3, 0, -0.2, 0], atol=1e-6)
    np.testing.assert_allclose(judged[1:3], [[0.1, 0.4, 0.2, 0]] * 2, atol=1e-6)


def test_entropy_sources_select_their_arrays_and_carry_no_gradient():
    old, current, logprobs = (np.full((1, 2), v, np.float32) for v in (1.0, 2.0, -3.0))
    arrays = {"old": old, "current": current, "old_logprobs": logprobs}
    assert adv.select_entropy("old", **arrays)[0, 0] == 1
    assert adv.select_entropy("current", **arrays)[0, 0] == 2
    assert adv.select_entropy("surprisal", **arrays)[0, 0] == 3
    rewards, groups, ones = np.ones(1), np.zeros(1, np.int32), np.ones((1, 2))
    for function in (da_grpo, rl_zvp):
        gradient = jax.grad(lambda h, f=function: jnp.sum(f(rewards, groups, h, ones)))(jnp.asarray(old))
        assert np.all(np.asarray(gradient) == 0)
        assert np.any(np.asarray(function(rewards, groups, old, ones)) != 0)


def test_unknown_names_are_refused_in_one_line():
    rewards, groups, ones = np.ones(1), np.zeros(1, np.int32), np.ones((1, 2), np.float32)
    with pytest.raises(UserError, match="trigger 'never' is unknown; choose one of zero, group, below"):
        adv.da_grpo(rewards, groups, ones, ones, trigger="never")
    with pytest.raises(UserError, match="entropy source 'new' is unknown"):
        adv.select_entropy("new", old=ones)
    with pytest.raises(UserError, match="'current' was chosen but its array was not given"):
        adv.select_entropy("current", old=ones)
    with pytest.raises(
        UserError, match="kind of entropy weights 'log' is unknown; choose one of inverse, collision"
    ):
        adv.entropy_region_weights(np.ones(5, np.float32), kind="log")
    with pytest.raises(UserError, match="overlong buffer 9 must be above 0 and at most max_length 8"):
        adv.soft_overlong_penalty(np.ones(2), max_length=8, buffer=9)


def test_one_compilation_serves_any_grouping():
    traces = []
    compiled = jax.jit(lambda *arrays: (traces.append(1), adv.da_grpo(*arrays))[1])
    rng = np.random.default_rng(0)
    entropy, mask = rng.random((6, 2), np.float32), np.ones((6, 2), bool)
    for groups in ([0] * 6, [5, 4, 3, 2, 1, 0], [10**8, -1, 10**8, -1, 7, 7]):
        rewards, groups = rng.integers(0, 3, 6).astype(np.float32), np.array(groups, np.int32)
        np.testing.assert_allclose(
            compiled(rewards, groups, entropy, mask),
            da_grpo(rewards, groups, entropy, mask),
            atol=1e-6,
        )
    assert len(traces) == 1


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from([0.01, 0.1, 0.25, 0.999]))
def test_kl_cov_selects_the_top_share_by_covariance(batch, ratio):
    _, _, mask, entropy = batch
    advantages = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32)
    logprobs = -entropy
    chosen = np.asarray(kl_cov_selection(logprobs, advantages, mask, ratio=ratio))
    valid = mask.sum()
    assert not chosen[~mask].any()
    if valid == 0:
        return
    a, p = advantages[mask].astype(np.float64), logprobs[mask].astype(np.float64)
    covariance = (a - a.mean()) * (p - p.mean())
    count = max(1, int(valid * ratio))
    assert chosen.sum() == count
    lowest_chosen = covariance[chosen[mask]].min()
    assert np.sum(covariance > lowest_chosen + 1e-4) < count


def test_an_exact_product_of_share_and_tokens_is_not_floored():
    logprobs = np.linspace(-1, 0, 1000, dtype=np.float32).reshape(10, 100)
    for ratio, count in ((0.002, 2), (0.003, 3), (0.0002, 1), (0.007, 7), (0.0029, 2)):
        assert int(kl_cov_selection(logprobs, logprobs, np.ones((10, 100)), ratio=ratio).sum()) == count


def test_dynamic_sampling_keeps_groups_with_variance_and_groups_of_one():
    rewards = np.array([1.0, 1.0, 0.0, 1.0, 0.1 + 0.2, 0.3, 5.0])
    groups = np.array([0, 0, 1, 1, 2, 2, 3])
    assert adv.has_reward_variance(rewards, groups).tolist() == [False, False, True, True, False, False, True]


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2**-10, 2**10, width=32),
    st.sampled_from([-1.0, 1.0]),
    st.lists(st.integers(0, 24), min_size=RESPONSES, max_size=RESPONSES),
    st.lists(st.integers(0, 2), min_size=RESPONSES, max_size=RESPONSES),
)
def test_host_and_device_agree_on_near_ties_and_grpo_is_0_exactly_there(size, sign, units, groups):
    """Rewards up to 24 units in the last place apart, on both sides of the tolerance."""
    rewards = sign * (np.float32(size) + np.spacing(np.float32(size)) * np.array(units, np.float32))
    groups = np.array(groups)
    for host, device in (
        (adv.zero_variance_groups, zero_variance_groups),
        (adv.has_reward_variance, has_reward_variance),
    ):
        found = host(rewards, groups)
        assert isinstance(found, np.ndarray)  # nothing was compiled
        np.testing.assert_array_equal(found, device(rewards, groups))
    found = adv.zero_variance_groups(rewards, groups)
    values = np.asarray(grpo(rewards, groups, np.ones((RESPONSES, TOKENS), bool)))[:, 0]
    for group in set(groups.tolist()):
        assert np.all(values[groups == group] == 0) == found[groups == group].all()
        assert found[groups == group].all() == found[groups == group].any()


def test_zero_variance_is_decided_on_the_range_of_the_rewards_and_not_on_their_order():
    unit = float(np.finfo(np.float32).eps)
    tie, apart = [1.0, 1.0, 1.0, 1.0 + 7 * unit], [1.0, 1.0, 1.0, 1.0 + 10 * unit]
    for rewards, equal in ((tie, True), (tie[::-1], True), (apart, False), (apart[::-1], False)):
        found = adv.zero_variance_groups(np.array(rewards, np.float32), np.zeros(4, np.int64))
        assert found.tolist() == [equal] * 4
    # Scores of the host in float64 that are equal on paper; a group of one; numbers of 64 bits.
    rewards = np.array([0.1 + 0.2, 0.3, 5.0, 1.0, 1.001])
    groups = np.array([2**32, 2**32, 7, 0, 0])
    assert adv.zero_variance_groups(rewards, groups).tolist() == [True, True, True, False, False]
    assert adv.has_reward_variance(rewards, groups).tolist() == [False, False, True, True, True]


def test_the_soft_overlong_penalty_rises_linearly_in_the_buffer():
    lengths = np.array([0, 12, 14, 16, 18, 20, 25])
    got = adv.soft_overlong_penalty(lengths, max_length=20, buffer=8, factor=0.5)
    np.testing.assert_allclose(got, [0, 0, -0.125, -0.25, -0.375, -0.5, -0.5])


def test_overlong_filtering_takes_the_tokens_but_not_the_reward():
    mask = adv.drop_overlong(np.ones((2, 3)), np.array([True, False]))
    assert mask.tolist() == [[False] * 3, [True] * 3]
    got = np.asarray(grpo(np.array([0.0, 2.0]), np.zeros(2, np.int32), mask))
    np.testing.assert_allclose(got, [[0] * 3, [0.70711] * 3], atol=1e-5)


WEIGHTS = RegionValues(outside=1.0, format=0.95, name=1.2, parameters=0.8, thinking=0.016)
RATES = RegionValues(format=-0.003, parameters=0.003, thinking=6e-5)
CEILINGS = RegionValues(outside=1.0, format=1.0, name=1.2, parameters=1.2, thinking=1.0)
qwen3_rest = jax.jit(partial(adv.rest_weights, initial=WEIGHTS, rates=RATES, ceilings=CEILINGS))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.floats(0, 400))
def test_rest_weights_have_mean_one_and_the_curriculum_s_proportions(seed, progress):
    rng = np.random.default_rng(seed)
    regions, mask = rng.integers(0, 5, (3, 12)), rng.random((3, 12)) < 0.9
    mask[:, 0] = True
    got = np.asarray(qwen3_rest(regions, mask, progress=progress))
    np.testing.assert_allclose(got.sum(1), mask.sum(1), rtol=1e-5)
    assert np.all(got[~mask] == 0)
    by_hand = np.array([
        1.0,
        max(0.95 - 0.003 * progress, 0.001),
        1.2,
        min(0.8 + 0.003 * progress, 1.2),
        min(0.016 + 6e-5 * progress, 1.0),
    ])  # fmt: skip
    for row, inside, values in zip(regions, mask, got):
        expected = by_hand[row] * inside
        np.testing.assert_allclose(values, expected * inside.sum() / expected.sum(), rtol=1e-4)


def test_released_rest_gives_nothing_outside_the_regions():
    release = RegionValues(outside=0.0, format=1.0, name=1.2, parameters=0.6, thinking=0.6)
    regions = np.array([[0, 1, 2, 3, 4, 0]])
    got = adv.rest_weights(
        regions,
        np.ones((1, 6)),
        initial=release,
        rates=RegionValues(parameters=0.002, thinking=0.002),
        ceilings=CEILINGS,
        progress=100.0,
    )
    kept = np.array([1.0, 1.2, 0.8, 0.8])
    np.testing.assert_allclose(got[0], [0, *(kept / kept.mean()), 0], rtol=1e-6)


def test_entropy_based_initial_weights_invert_each_region_s_entropy():
    regions = np.array([[Region.NAME, Region.NAME, Region.THINKING, Region.PARAMETERS]])
    entropy = np.array([[0.1, 0.3, 2.0, 99.0]], np.float32)
    mask = np.array([[1, 1, 1, 0]])
    whole = adv.region_entropy(entropy, regions, mask)
    assert whole.tokens.tolist() == [0, 0, 2, 0, 1]
    mean = np.asarray(whole.mean())
    np.testing.assert_allclose(mean[[2, 4]], [0.2, 2.0], rtol=1e-6)
    np.testing.assert_allclose(adv.entropy_region_weights(mean), [1, 1, 5, 1, 0.5], rtol=1e-5)
    np.testing.assert_allclose(
        adv.entropy_region_weights(mean, kind="collision"),
        [1, 1, 1 / (1 - np.exp(-0.2)), 1, 1 / (1 - np.exp(-2.0))],
        rtol=1e-5,
    )
    halves = [
        adv.region_entropy(entropy[:, s], regions[:, s], mask[:, s]) for s in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(jax.tree.map(jnp.add, *halves).total, whole.total, rtol=1e-6)
