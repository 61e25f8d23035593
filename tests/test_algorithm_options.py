"""An algorithm's options: their ranges, and which of them change anything."""

import dataclasses
from dataclasses import replace
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import numpy as np
import pytest

from dcore_jax.algorithms import (
    PRESETS,
    AlgorithmConfig,
    algorithm_preset,
    check_changes,
    policy_batch,
    policy_batch_denominator,
    policy_batch_loss,
    relevant_fields,
)
from dcore_jax.errors import UserError
from dcore_jax.regions import RegionValues

RNG = np.random.default_rng(0)
REWARDS = np.array([1.0, 0.0, 2.0, 2.0, -1.0, 0.0, 1.0])
GROUPS = np.array([0, 0, 1, 1, 2, 2, 2])  # with variance; without; with a response at its mean
MASK = np.arange(8) < np.array([8, 7, 8, 6, 8, 8, 5])[:, None]
CORRECT = np.array([1, 0, 1, 0, 0, 1, 0], bool)
REGIONS = RNG.integers(0, 5, MASK.shape)
OLD, ENTROPY, NOW = (RNG.uniform(0.1, 6, MASK.shape).astype(np.float32) for _ in range(3))
REFERENCE, ENGINE, LOGPROBS = (-OLD + RNG.normal(0, 1.2, MASK.shape).astype(np.float32) for _ in range(3))


def outcome(config):
    """Everything that `config` decides between the rollouts and the update; None where it cannot be computed."""
    try:
        batch = policy_batch(
            config, REWARDS, GROUPS, MASK, -OLD, correct=CORRECT, old_entropy=ENTROPY, ref_logprobs=REFERENCE,
            engine_logprobs=ENGINE, regions=REGIONS, progress=20.0,
        )  # fmt: skip
        denominator = policy_batch_denominator(config, batch, max_length=9)
    except UserError:
        return None
    found = policy_batch_loss(config, LOGPROBS, batch, denominator=denominator, entropy=NOW)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((found, batch))]


def same(first, second):
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(first, second))


# Read while prompts are sampled or when a response's regions are found, which `outcome` does not do.
ELSEWHERE = {"dynamic_sampling", "max_sampling_rounds", "overlong_buffer", "overlong_factor", "drop_overlong"}
KL = {"kl_coefficient", "reward_kl_coefficient"}
OTHER = {
    "alpha": 0.02, "delta": 0.3, "scale": 3.0, "zeta": 1.5, "clip_low": 0.05, "clip_high": 0.01, "dual_clip": 1.1,
    "kl_coefficient": 0.5, "reward_kl_coefficient": 0.2, "importance_cap": 1.25, "kl_cov_ratio": 0.3, "kl_cov_coefficient": 4.0,
    "weight_min": 0.9, "weight_max": 0.2, "region_weights": 0.7, "region_rates": -0.01, "region_ceilings": 0.0,
}  # fmt: skip


def changes(config):
    """`(name, config)` for every observable field changed alone; fields of nested records by their dotted names."""
    hints = get_type_hints(AlgorithmConfig)
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in ELSEWHERE or name in ("name", "preset", "region_rules"):
            continue
        if {name, *(k for k in KL if getattr(config, k))} == KL:
            continue  # a KL in the loss and one in the reward are refused
        if dataclasses.is_dataclass(value):
            for region in dataclasses.fields(value):
                moved = replace(value, **{region.name: OTHER[name]})
                yield f"{name}.{region.name}", replace(config, **{name: moved})
        elif get_origin(hints[name]) is Literal:
            other = next(choice for choice in get_args(hints[name]) if choice != value)
            yield name, replace(config, **{name: other})
        else:
            yield name, replace(config, **{name: OTHER[name]})


INVERSE = {
    "region_weighting": "inverse",
    "region_weights": RegionValues(name=1.0),
}  # text outside is left out
# Together they have every condition of `relevant_fields` both ways.
CASES = {
    "grpo without KL": replace(algorithm_preset("grpo"), kl_coefficient=0.0),
    "da_grpo": algorithm_preset("da_grpo"),
    "da_grpo, below": replace(algorithm_preset("da_grpo"), trigger="below"),
    "KL in the reward": replace(algorithm_preset("grpo"), kl_coefficient=0.0, reward_kl_coefficient=0.4),
    "rest, static": replace(algorithm_preset("rest", "release"), ablation="static"),
    "rest, no thinking": replace(algorithm_preset("rest", "release"), ablation="no_thinking"),
    "rest, uniform": replace(algorithm_preset("rest"), ablation="uniform"),
    "rest, fixed": algorithm_preset("rest", "release"),
    "rl_zvp with KL-Cov, rest, inverse": replace(algorithm_preset("rl_zvp"), kl_cov_ratio=0.1, **INVERSE),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_field_is_relevant_exactly_where_changing_it_changes_something(config):
    before, relevant = outcome(config), relevant_fields(config)
    moved = {name: not same(before, outcome(changed)) for name, changed in changes(config)}
    assert {name for name, differs in moved.items() if differs} == relevant & set(moved)


def test_fields_read_while_sampling_are_relevant_with_their_switch():
    off, on = algorithm_preset("grpo"), algorithm_preset("dapo")
    assert ELSEWHERE - relevant_fields(off) == {"max_sampling_rounds", "overlong_factor"}
    assert relevant_fields(on) >= ELSEWHERE
    # Regions are found for every algorithm: the log has entropies by region.
    assert {"region_rules.all_calls", "region_rules.punctuation_is_format"} <= relevant_fields(off)


def test_a_change_without_effect_is_refused_by_name():
    with pytest.raises(
        UserError,
        match=r"^algorithm.alpha=0.4 changes nothing in grpo; its options are advantage, group_std, ratio, clip_low",
    ):
        check_changes(replace(algorithm_preset("grpo"), alpha=0.4))
    rest = algorithm_preset("rest")
    still = replace(rest, delta=1.0, region_ceilings=replace(rest.region_ceilings, name=1.5))
    with pytest.raises(UserError) as refused:
        check_changes(still)
    message = str(refused.value)
    assert "algorithm.delta=1.0 and algorithm.region_ceilings.name=1.5 change nothing in rest" in message
    assert "\n" not in message and "region_ceilings" in message.partition("options are")[2]
    rises = replace(still, delta=0.5, region_rates=replace(rest.region_rates, name=0.001))
    check_changes(rises)
    check_changes(replace(algorithm_preset("grpo"), advantage="da_grpo", alpha=0.4))


def test_presets_pass_their_own_check():
    for (name, preset), config in PRESETS.items():
        assert (config.name, config.preset) == (name, preset)
        check_changes(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -0.1}, "algorithm.alpha=-0.1 must be finite and at least 0"),
        ({"delta": float("nan")}, "algorithm.delta=nan must be finite and at least 0"),
        ({"scale": float("inf")}, "algorithm.scale=inf must be finite"),
        ({"clip_low": 1.0}, r"algorithm.clip_low=1.0 must be finite and in \[0, 1\), or None for no clip"),
        ({"clip_high": -0.2}, "algorithm.clip_high=-0.2 must be finite and at least 0, or None"),
        ({"dual_clip": 1.0}, "algorithm.dual_clip=1.0 must be finite and above 1, or None for no bound"),
        ({"importance_cap": -1.0}, "algorithm.importance_cap=-1.0 must be finite and at least 0"),
        ({"max_sampling_rounds": 0}, "algorithm.max_sampling_rounds=0 must be finite and at least 1"),
        ({"overlong_buffer": 1.5}, r"algorithm.overlong_buffer=1.5 must be finite and in \[0, 1\]"),
        ({"kl_cov_ratio": -0.1}, r"algorithm.kl_cov_ratio=-0.1 must be finite and in \[0, 1\]"),
        ({"weight_min": 9.0}, "algorithm.weight_min=9.0 must be at most algorithm.weight_max=8.0"),
    ],
)
def test_numbers_outside_their_range_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as refused:
        AlgorithmConfig(**changes)
    assert "\n" not in str(refused.value)


def test_an_unknown_choice_is_refused_in_one_line():
    config = AlgorithmConfig()
    object.__setattr__(config, "trigger", "never")  # the tests' type checks would refuse it first
    with pytest.raises(
        UserError, match=r"algorithm.trigger 'never' is unknown; choose one of zero, group, below"
    ):
        config.__post_init__()


def test_region_values_outside_their_range_are_refused_by_name():
    rest = algorithm_preset("rest")
    with pytest.raises(UserError, match=r"algorithm.region_weights.name=-1.0 must be finite and at least 0"):
        replace(rest, region_weights=replace(rest.region_weights, name=-1.0))
    with pytest.raises(UserError, match=r"algorithm.region_rates.format=inf must be finite"):
        replace(rest, region_rates=replace(rest.region_rates, format=float("inf")))
