"""Presets by name, the batch they ask for, and the page that explains them."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcore_jax import advantages as adv
from dcore_jax import losses
from dcore_jax.advantages import entropy_shaped
from dcore_jax.algorithms import (
    ALGORITHMS,
    PRESETS,
    algorithm_preset,
    choose_penalised,
    policy_batch,
    policy_batch_denominator,
    policy_batch_loss,
)
from dcore_jax.errors import UserError
from dcore_jax.regions import Region

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
REWARDS, GROUPS, MASK = np.array([1.0, 0.0, 2.0, 2.0]), np.array([0, 0, 1, 1]), np.ones((4, 3), bool)
OLD = np.full((4, 3), -1.0, np.float32)
ENTROPY = np.linspace(0.5, 3.0, 12, dtype=np.float32).reshape(4, 3)


def test_every_fenced_example_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert len(blocks) >= 1 + len(ALGORITHMS)


def test_the_page_names_every_algorithm():
    page = PAGE.read_text()
    for name in ALGORITHMS:
        assert f"| `{name}` |" in page
    assert set(PRESETS) == {(name, preset) for name in ALGORITHMS for preset in ("paper", "release")}


def test_unknown_names_are_refused_in_one_line():
    with pytest.raises(UserError, match="algorithm 'ppo' is unknown; choose one of da_grpo, grpo"):
        algorithm_preset("ppo")
    with pytest.raises(UserError, match="preset 'best' is unknown; choose one of paper, release"):
        algorithm_preset("grpo", "best")


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("da_grpo", {"kl_coefficient": 0.0}, "needs old_entropy"),
        ("grpo", {}, "kl_coefficient 0.001 needs ref_logprobs"),
        ("rest", {}, "region weights need regions"),
        ("rest", {"region_weighting": "inverse"}, "needs old_entropy"),
        ("dapo", {"importance_cap": 2.0}, "importance_cap needs engine_logprobs"),
    ],
)
def test_what_a_config_needs_and_lacks_is_named(algorithm, changes, message):
    config = replace(algorithm_preset(algorithm, "release"), **changes)
    with pytest.raises(UserError, match=message):
        policy_batch(config, REWARDS, GROUPS, MASK, OLD)


def test_current_entropy_fills_in_the_bonus_at_the_update():
    config = replace(algorithm_preset("da_grpo"), entropy_source="current", kl_coefficient=0.0)
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD)
    np.testing.assert_array_equal(batch.replaced, [[False] * 3] * 2 + [[True] * 3] * 2)
    logprobs = OLD + np.float32(0.05)
    denominator = policy_batch_denominator(config, batch)
    value, _ = policy_batch_loss(config, logprobs, batch, denominator=denominator, entropy=ENTROPY)
    filled = batch._replace(advantages=adv.da_grpo(REWARDS, GROUPS, ENTROPY, MASK))
    plain = replace(config, entropy_source="old")
    expected, _ = policy_batch_loss(plain, logprobs, filled, denominator=denominator)
    assert value == pytest.approx(float(expected)) and value != 0
    with pytest.raises(UserError, match="'current' was chosen but its array was not given"):
        policy_batch_loss(config, logprobs, batch, denominator=denominator)


@pytest.mark.parametrize("trigger", adv.TRIGGERS)
@pytest.mark.parametrize("source", adv.ENTROPY_SOURCES)
def test_what_trains_is_da_grpo_to_the_bit_also_in_microbatches_that_cut_a_group_apart(
    source, trigger, monkeypatch
):
    rng = np.random.default_rng(3)
    rewards = np.array([1.0, 0.0, 2.0, 2.0, 0.0, 1.0, 2.0, 0.5])
    groups = np.array([0, 0, 5, 5, 9, 9, 9, 0])  # without variance; with a response at its mean
    mask = rng.random((8, 3)) < 0.8
    old, entropy, current = (rng.uniform(0, 8, (8, 3)).astype(np.float32) for _ in range(3))
    numbers = {"alpha": 0.3, "delta": 0.7, "scale": 1.5, "zeta": 0.01, "trigger": trigger}
    config = replace(algorithm_preset("da_grpo"), entropy_source=source, kl_coefficient=0.0, **numbers)
    batch = policy_batch(config, rewards, groups, mask, -old, old_entropy=entropy)
    used, policy_loss = [], losses.policy_loss

    def recorded(logprobs, old_logprobs, advantages, *arguments, **options):
        used.append(np.asarray(advantages))
        return policy_loss(logprobs, old_logprobs, advantages, *arguments, **options)

    monkeypatch.setattr(losses, "policy_loss", recorded)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 8)):
        micro = jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)
        policy_batch_loss(config, -old[rows], micro, denominator=1.0, entropy=current[rows])
    chosen = {"old": entropy, "current": current, "surprisal": old}[source]
    expected = np.asarray(adv.da_grpo(rewards, groups, chosen, mask, **numbers))
    np.testing.assert_array_equal(np.concatenate(used), expected)
    assert len(np.unique(expected)) >= 8  # bonuses differ from token to token


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "da_grpo", "rl_zvp"])
def test_every_advantage_comes_from_its_function_in_advantages(advantage, monkeypatch):
    config = replace(algorithm_preset("grpo"), advantage=advantage, kl_coefficient=0.0, correct="reward")
    sevens = jnp.full((4, 3), 7.0)
    monkeypatch.setattr(adv, advantage, lambda *arrays, **options: sevens)
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD, old_entropy=ENTROPY)
    np.testing.assert_array_equal(batch.advantages, sevens)


@pytest.mark.parametrize("source", adv.ENTROPY_SOURCES)
def test_one_function_gives_the_bonus_of_every_entropy_source(source, monkeypatch):
    config = replace(algorithm_preset("da_grpo"), entropy_source=source, kl_coefficient=0.0)
    denominator = 12.0
    monkeypatch.setattr(entropy_shaped, "entropy_bonus", lambda entropy, **numbers: jnp.full_like(entropy, 7))
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD, old_entropy=ENTROPY)
    value, _ = policy_batch_loss(config, OLD, batch, denominator=denominator, entropy=ENTROPY)
    # On-policy the loss is minus the responses' summed means of A: those of the first group cancel.
    assert value == pytest.approx(-(7 + 7) / denominator, rel=1e-5)


def test_surprisal_needs_no_entropy_at_all():
    config = replace(algorithm_preset("da_grpo"), entropy_source="surprisal", kl_coefficient=0.0)
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD)
    np.testing.assert_allclose(batch.advantages[2:], 0.1, rtol=1e-6)


def test_entropy_based_region_weights_start_from_the_regions_entropy():
    config = replace(algorithm_preset("rest"), region_weighting="inverse")
    regions = np.tile([Region.NAME, Region.THINKING, Region.OUTSIDE], (4, 1))
    entropy = np.tile(np.array([0.5, 2.0, 7.0], np.float32), (4, 1))
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD, old_entropy=entropy, regions=regions)
    raw = np.array([2.0, 0.5, 1.0])
    np.testing.assert_allclose(batch.token_weights[0], raw / raw.mean(), rtol=1e-5)
    kept = policy_batch(
        config, REWARDS, GROUPS, MASK, OLD, old_entropy=9 * entropy, regions=regions,
        region_entropy=np.array([7, np.nan, 0.5, np.nan, 2], np.float32),
    )  # fmt: skip
    np.testing.assert_allclose(kept.token_weights, batch.token_weights, rtol=1e-5)


@pytest.mark.parametrize("kind", ["inverse", "collision"])
def test_weights_from_entropies_move_from_the_first_step_however_certain_a_region_is(kind):
    config = replace(algorithm_preset("rest"), region_weighting=kind)
    regions = np.tile([Region.NAME, Region.FORMAT, Region.PARAMETERS], (4, 1))
    entropy = np.tile(np.array([0.5, 1e-3, 0.4], np.float32), (4, 1))
    found = []
    for progress in (0, 1000):
        batch = policy_batch(
            config, REWARDS, GROUPS, MASK, OLD, old_entropy=entropy, regions=regions, progress=progress
        )
        found.append(np.asarray(batch.token_weights[0]))
    start = np.array([1 / h if kind == "inverse" else 1 / (1 - np.exp(-h)) for h in (0.5, 1e-3, 0.4)])
    start = np.clip(start, 0.001, 8)
    later = start + np.array(
        [0, -3.0, 3.0]
    )  # 1,000 steps of 0.003: format falls from the bound, parameters rise
    np.testing.assert_allclose(found[0], start / start.mean(), rtol=1e-5)
    np.testing.assert_allclose(found[1], later / later.mean(), rtol=1e-5)


def test_rest_divides_by_the_standard_deviation_over_g_in_its_paper_alone():
    rewards, groups, mask = (
        np.array([1.0, 0.0, 0.0, 0.0, 2.0, 4.0]),
        np.array([5, 5, 5, 5, 1, 1]),
        np.ones((6, 2)),
    )
    regions = np.full((6, 2), Region.NAME)
    # (R - mean) / sqrt(sum (R - mean)^2 / G), by hand: mean 1/4, variance 3/16; mean 3, variance 1.
    by_g = np.array([np.sqrt(3), *[-1 / np.sqrt(3)] * 3, -1, 1])
    size = np.array([4, 4, 4, 4, 2, 2])
    for preset, expected in (("paper", by_g), ("release", by_g * np.sqrt((size - 1) / size))):
        batch = policy_batch(
            algorithm_preset("rest", preset),
            rewards,
            groups,
            mask,
            np.zeros((6, 2), np.float32),
            regions=regions,
        )
        np.testing.assert_allclose(batch.advantages, np.tile(expected[:, None], 2), atol=1e-5)
    with pytest.raises(UserError, match="group_std 'g' is unknown; choose one of sample, population"):
        adv.grpo(rewards, groups, mask, group_std="g")


@pytest.mark.parametrize(
    ("preset", "step", "parameters"),
    [
        ("paper", 100, 1.1),
        ("paper", 300, 1.7),
        ("paper", 9000, 8.0),
        ("release", 300, 1.2),
        ("release", 200, 1.0),
    ],
)
def test_rest_s_weight_of_parameters_rises_to_w_max_and_in_the_release_to_1_2(preset, step, parameters):
    regions = np.tile([Region.NAME, Region.PARAMETERS, Region.NAME], (4, 1))
    batch = policy_batch(
        algorithm_preset("rest", preset), REWARDS, GROUPS, MASK, OLD, regions=regions, progress=step
    )
    np.testing.assert_allclose(
        batch.token_weights[0, 1] / batch.token_weights[0, 0], parameters / 1.2, rtol=1e-5
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_paper_preset_has_the_dual_clip_that_no_paper_has(name):
    assert algorithm_preset(name, "paper").dual_clip is None


def test_kl_cov_chooses_in_the_update_by_the_policy_that_is_updated():
    config = replace(algorithm_preset("kl_cov"), kl_cov_ratio=0.25)
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD)
    assert batch.penalised is None  # a step's rollouts choose nothing: its updates do
    logprobs = OLD.copy()
    logprobs[0, 1], logprobs[1, 2] = -0.1, -3.0  # likely with A > 0, unlikely with A < 0
    half = jax.tree.map(lambda leaf: leaf[:2], batch)
    a, p = np.array([[0.70711] * 3, [-0.70711] * 3]), logprobs[:2].astype(np.float64)
    covariance = (a - a.mean()) * (p - p.mean())
    expected = covariance == covariance.max()
    assert expected.sum() == 1 and expected[1, 2]
    np.testing.assert_array_equal(choose_penalised(config, logprobs[:2], half).penalised, expected)
    _, sums = policy_batch_loss(config, logprobs[:2], half, denominator=6.0)
    assert sums.penalised == 1


def test_rl_zvp_needs_to_know_what_is_right():
    config = replace(algorithm_preset("rl_zvp"), kl_coefficient=0.0)
    with pytest.raises(UserError, match="needs correct"):
        policy_batch(config, REWARDS, GROUPS, MASK, OLD, old_entropy=ENTROPY)
    flat = np.array([1.0, 0.0, 1.0, 1.0])  # two wrong answers in the right format earn the same
    wrong = np.array([True, False, False, False])
    batch = policy_batch(config, flat, GROUPS, MASK, OLD, old_entropy=ENTROPY, correct=wrong)
    assert np.all(np.asarray(batch.advantages[2:]) <= 0)


def test_importance_weights_enter_the_batch_when_a_cap_is_set():
    config = replace(algorithm_preset("dapo"), importance_cap=2.0)
    engine = OLD - np.float32(np.log(1.5))
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD, engine_logprobs=engine)
    np.testing.assert_allclose(batch.importance_weights, 1.5, rtol=1e-5)
    assert policy_batch(algorithm_preset("dapo"), REWARDS, GROUPS, MASK, OLD).importance_weights is None


def test_a_batch_is_made_under_jit_and_slices_row_by_row():
    config = algorithm_preset("rl_zvp", "release")
    made = jax.jit(
        lambda rewards: policy_batch(
            config, rewards, GROUPS, MASK, OLD, old_entropy=ENTROPY, ref_logprobs=OLD
        )
    )(jnp.asarray(REWARDS))
    assert made.replaced.sum() == 6
    rows = jax.tree.map(lambda leaf: leaf[1:3], made)
    assert rows.advantages.shape == (2, 3) and rows.token_weights is None
