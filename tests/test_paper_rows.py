"""Rows and figures of the papers: ToolRL's KL in the reward, ResT's ablations and entropy reward, D-CORE's step 0."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dcore_jax import advantages as adv
from dcore_jax import losses
from dcore_jax.algorithms import algorithm_preset, check_changes, policy_batch
from dcore_jax.calls import Call
from dcore_jax.errors import UserError
from dcore_jax.regions import Region
from dcore_jax.rewards import RewardInput, open_rewards
from dcore_jax.rl.start import plot_start, write_start

RNG = np.random.default_rng(0)
REWARDS, GROUPS = np.array([1.0, 0.0, 2.0, 2.0]), np.array([0, 0, 1, 1])
MASK = np.arange(5) < np.array([5, 3, 4, 1])[:, None]
OLD = -RNG.uniform(0.1, 3, MASK.shape).astype(np.float32)
REFERENCE = (OLD + RNG.normal(0, 0.5, MASK.shape)).astype(np.float32)
REGIONS = np.tile([Region.THINKING, Region.FORMAT, Region.NAME, Region.PARAMETERS, Region.OUTSIDE], (4, 1))


def test_the_kl_in_the_reward_is_the_sum_over_tokens_before_the_groups_are_compared():
    """As ToolRL's code has it: token-level rewards are score - beta * (log pi_old - log pi_ref), and GRPO adds them up."""
    config = replace(algorithm_preset("grpo", "release"), kl_coefficient=0.0, reward_kl_coefficient=0.3)
    rewards = np.array(REWARDS)
    for i in range(4):
        for t in range(5):
            if MASK[i, t]:
                rewards[i] -= 0.3 * (float(OLD[i, t]) - float(REFERENCE[i, t]))
    expected = np.zeros(MASK.shape)
    for group in (0, 1):
        own = rewards[group == GROUPS]
        expected[group == GROUPS] = ((own - own.mean()) / (own.std(ddof=1) + 1e-6))[:, None]
    batch = policy_batch(config, REWARDS, GROUPS, MASK, OLD, ref_logprobs=REFERENCE)
    np.testing.assert_allclose(batch.advantages, np.where(MASK, expected, 0), atol=1e-5)
    assert batch.ref_logprobs is None  # the loss has no KL term
    assert abs(float(batch.advantages[2, 0])) > 0.5  # equal scores, told apart by the KL alone


@pytest.mark.parametrize(
    ("estimator", "of_gap"), [("k2", lambda d: d**2 / 2), ("k3", lambda d: np.exp(d) - d - 1)]
)
def test_the_estimator_is_an_option(estimator, of_gap):
    gap = np.where(MASK, REFERENCE - OLD, 0)
    found = losses.kl_in_reward(REWARDS, OLD, REFERENCE, MASK, coefficient=0.3, estimator=estimator)
    np.testing.assert_allclose(found, REWARDS - 0.3 * of_gap(gap).sum(1), rtol=1e-5)


def test_a_kl_in_the_reward_beside_one_in_the_loss_is_refused():
    with pytest.raises(
        UserError, match=r"reward_kl_coefficient=0.001 \(in the reward\) would count the KL twice"
    ):
        replace(algorithm_preset("grpo"), reward_kl_coefficient=0.001)
    alone = replace(algorithm_preset("grpo"), kl_coefficient=0.0, reward_kl_coefficient=0.001)
    with pytest.raises(UserError, match=r"reward_kl_coefficient 0.001 needs ref_logprobs"):
        policy_batch(alone, REWARDS, GROUPS, MASK, OLD)


def weights(ablation, progress=0.0):
    config = replace(algorithm_preset("rest"), ablation=ablation)
    check_changes(config)
    batch = policy_batch(
        config, REWARDS, GROUPS, np.ones((4, 5), bool), OLD, regions=REGIONS, progress=progress
    )
    return np.asarray(batch.token_weights[0])


def test_rest_without_its_curriculum_weighs_every_step_as_the_first():
    assert not np.allclose(weights("none", 100), weights("none"))
    np.testing.assert_array_equal(weights("static", 100), weights("none"))


def test_rest_without_thinking_weighs_the_other_regions_alone():
    raw = np.array([0, 0.95 - 0.3, 1.2, 0.8 + 0.3, 1.0])  # Table F.1 after 100 steps
    np.testing.assert_allclose(weights("no_thinking", 100), raw / raw[1:].mean(), rtol=1e-5)


def test_rest_with_uniform_weights_is_grpo():
    np.testing.assert_array_equal(weights("uniform", 100), np.ones(5))
    rest = replace(algorithm_preset("rest"), ablation="uniform", region_weighting="inverse")
    batch = policy_batch(rest, REWARDS, GROUPS, MASK, OLD, regions=REGIONS)  # needs no entropy
    np.testing.assert_array_equal(batch.token_weights, MASK.astype(np.float32))
    np.testing.assert_array_equal(batch.advantages, adv.grpo(REWARDS, GROUPS, MASK, group_std="population"))


def rollouts(folder, scores):
    """A run's folder with rollouts of its first step, one list of scores a prompt, and of a later one."""
    folder.mkdir()
    rows = [
        {"step": 1, "group": group, "reward": score - penalty, "overlong_penalty": penalty}
        for group, own in enumerate(scores)
        for score, penalty in zip(own, (0.0, 0.25, 0.0))
    ]
    rows.append({"step": 2, "group": 0, "reward": 100.0, "overlong_penalty": 0.0})
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_step_0_in_numbers_and_as_a_figure_before_and_after(tmp_path):
    before = rollouts(tmp_path / "before", [[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    after = rollouts(tmp_path / "after", [[0.0, 1.0, 2.0], [3.0, 3.0, 3.0]])
    found = write_start(after)
    assert found["prompts"] == 2 and found["rollouts"] == 3 and found["mean"] == 2
    assert found["std"] == 0.5 and found["std_zero"] == 0.5  # std of 0, 1, 2 with n - 1 is 1
    assert found["advantage_size"] == pytest.approx(2 / 6, abs=1e-5) and found["advantage_zero"] == 4 / 6
    assert json.loads((after / "start.json").read_text())["by_prompt"] == {"mean": [1, 3], "std": [1, 0]}
    assert write_start(before)["std_zero"] == write_start(before)["advantage_zero"] == 1
    picture = plot_start({"before": before, "after": after}, tmp_path / "start.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no rollouts of a first step in it; give the folder of an RL run"):
        write_start(tmp_path)


def test_the_entropy_reward_is_the_mean_surprisal_times_its_weight_beside_another_reward():
    mix = open_rewards(["rest_paper", "entropy=-0.5"])
    given = RewardInput("<think>\n.\n</think>\n\n[f()]", (Call("f", {}),), surprisal=0.25)
    reward = mix(given)
    assert reward.parts["entropy"] == -0.125 and reward.total == sum(reward.parts.values()) == 2 - 0.125
    assert mix.range(given) is None and "entropy=-0.5" in str(mix)
    assert mix(replace(given, surprisal=None)).parts["entropy"] == 0  # a greedy answer
