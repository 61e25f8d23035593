"""Whole RL runs: killed and resumed, what each algorithm moves, real prompts, and mistakes in one line."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from conftest import CORE_INSTALL
from dcore_jax import UserError
from dcore_jax.algorithms import algorithm_preset
from dcore_jax.config import config_from_dict, read_config, write_config
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines import EngineConfig
from dcore_jax.metrics import read_metrics
from dcore_jax.nano import NanoConfig, embedded_model
from dcore_jax.plots_rl import plot_token_entropy
from dcore_jax.rl import EvaluationConfig, RewardConfig, RLConfig, RolloutConfig, RowConfig, summary, train
from dcore_jax.rl import run as rl_run
from dcore_jax.rl.learner import Learner
from dcore_jax.rl.sources import evaluation_prompts, training_prompts
from dcore_jax.sft import SFTConfig
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig, load_policy
from dcore_jax.training.run_folder import RunRecord, record_run

STEPS = 4
LEARNING_RATE = 3e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random nano Qwen3, not warm-started: its rewards in the tool world do not vary."""
    return embedded_model(tmp_path_factory.mktemp("model"), NanoConfig(hidden=64, layers=1), seed=0)


def config_for(model, output, **changes):
    base = RLConfig(
        model=str(model),
        data=("toolworld:24,kinds=single+parallel,subtasks=1-2",),
        output=str(output),
        mesh="1",
        steps=STEPS,
        prompts=4,
        updates=2,
        rollout=RolloutConfig(group=4, max_prompt=160, max_response=16),
        engine=EngineConfig(slots=16, cache_length=176),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE, schedule="constant", warmup=0.0, weight_decay=0.0
        ),
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every=1),
    )
    return dataclasses.replace(base, **changes)


def parameters(run):
    return [np.asarray(x) for x in jax.tree.leaves(jax.tree.leaves(_state(run)))]


def _state(run):
    from flax import nnx

    return nnx.split(load_policy(run)[0])[1]


def without_clocks(path):
    rows = read_metrics(path)
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


# A reward that a random model can learn: the share of characters that are lower-case letters, times four.
LETTERS = """
def letters(given):
    return 4 * sum("a" <= c <= "z" for c in given.response) / max(len(given.response), 1)
"""


@pytest.fixture
def letters(tmp_path):
    (tmp_path / "letters.py").write_text(LETTERS)
    return RewardConfig(name=(f"{tmp_path}/letters.py:letters",))


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    config = config_for(model, output, evaluation=EvaluationConfig(prompts=6, every=2))
    return config, train(config)


@pytest.fixture(autouse=True)
def no_pictures(uninterrupted, monkeypatch):
    """Pictures take a quarter of a short run: `uninterrupted` draws them, for the test that looks at them."""
    monkeypatch.setattr("dcore_jax.rl.run.plot_run", lambda folder: [])


def test_a_run_writes_metrics_rollouts_evaluations_and_pictures(uninterrupted):
    config, result = uninterrupted
    rows = read_metrics(result.output / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["weight_version"] for row in rows] == list(
        range(STEPS)
    )  # each step samples from the newest weights
    for name in (
        "reward", "reward_format", "reward_struct", "correct", "zero_variance_groups", "advantage_mean", "advantage_std",
        "advantage_replaced", "entropy", "entropy_outside", "reflections_per_thought", "response_length", "clip_fraction_low",
        "clip_fraction_high", "ref_kl", "old_kl", "engine_gap_mean", "engine_gap_max", "engine_gap_ess", "gradient_norm",
        "seconds_rollout", "seconds_logprobs", "seconds_update",
    ):  # fmt: skip
        assert all(np.isfinite(row[name]) for row in rows), name
    assert any(np.isfinite(row.get("reward/single 1", np.nan)) for row in rows)
    assert max(row["engine_gap_max"] for row in rows) < 1e-4
    assert rows[0]["zero_variance_groups"] == 1.0 and rows[0]["advantage_replaced"] == 1.0
    assert rows[-1]["gradient_norm"] > 0
    # The first update's policy is the reference itself; what a step shows is the mean over its two updates.
    drift = [row["ref_kl"] for row in rows]
    assert 0 < drift[0] < min(drift[1:])

    samples = read_metrics(result.output / "rollouts.jsonl")
    assert len(samples) == STEPS * config.responses
    for row in samples:
        assert {"prompt", "response", "reward", "reward_parts", "advantage_mean", "weight_version"} <= set(
            row
        )
        assert row["reward"] == pytest.approx(sum(row["reward_parts"].values()))
    by_step = [
        np.mean([row["reward"] for row in samples if row["step"] == step]) for step in range(1, STEPS + 1)
    ]
    np.testing.assert_allclose(by_step, [row["reward"] for row in rows])

    assert [row["step"] for row in read_metrics(result.output / "evaluation.jsonl")] == [0, 2, 4]
    for name in (
        "dynamics.png",
        "reward_parts.png",
        "reward_std.png",
        "token_entropy.png",
        "region_entropy.png",
    ):
        assert (result.output / name).read_bytes().startswith(b"\x89PNG"), name
    answers = read_metrics(result.output / "evaluation_answers.jsonl")
    assert [row["step"] for row in answers] == [0] * 6 + [2] * 6 + [4] * 6
    assert all(row["query"] and row["origin"] for row in answers)
    page = (result.output / "report.html").read_text(encoding="utf-8")
    assert "Greedy answers to the fixed prompts" in page and page.count('<div class="pair">') == 6
    assert "steps        4 of 4" in summary(result)
    assert read_config(RLConfig, result.output / "config.yaml") == config


def test_killed_between_rollout_and_update_and_resumed_it_equals_the_uninterrupted_run(
    uninterrupted, tmp_path
):
    config, result = uninterrupted
    again = dataclasses.replace(config, output=str(tmp_path / "again"))
    write_config(again, tmp_path / "config.yaml")
    program = (
        "import os, signal, sys\n"
        "from dcore_jax.config import read_config\n"
        "from dcore_jax.rl import RLConfig, train\n"
        "from dcore_jax.rl.learner import Learner\n"
        "update, calls = Learner.update, []\n"
        "def killed(*args):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(*args)\n"
        "Learner.update = killed\n"
        "train(read_config(RLConfig, sys.argv[1]))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "config.yaml")],
        env=CORE_INSTALL,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {row["step"] for row in read_metrics(tmp_path / "again" / "rollouts.jsonl")} == {1, 2, 3}
    assert len(read_metrics(tmp_path / "again" / "metrics.jsonl")) == 2

    the_same(train(again), result)


def the_same(run, other):
    """Equal in everything but clocks, bit for bit."""
    assert run.step == other.step == STEPS
    for name in ("metrics.jsonl", "rollouts.jsonl", "evaluation.jsonl"):
        assert without_clocks(run.output / name) == without_clocks(other.output / name), name
    for a, b in zip(parameters(run.output), parameters(other.output), strict=True):
        assert a.tobytes() == b.tobytes()


def test_sigterm_ends_the_step_and_saves_and_the_resumed_run_equals_the_uninterrupted_one(
    uninterrupted, tmp_path, monkeypatch
):
    config, result = uninterrupted
    again = dataclasses.replace(
        config, output=str(tmp_path / "again"), checkpoint=CheckpointConfig(every=STEPS)
    )
    update, calls = Learner.update, []

    def terminated(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(Learner, "update", terminated)
    stopped = train(again)
    assert stopped.preempted and stopped.step == 2
    the_same(train(again), result)


def test_a_reference_model_in_host_memory_changes_nothing(uninterrupted, tmp_path):
    config, result = uninterrupted
    there = dataclasses.replace(config, output=str(tmp_path / "host"), reference_on_host=True)
    the_same(train(there), result)


def test_a_steady_state_compiles_nothing(model, tmp_path, monkeypatch):
    compilations, by_step = [], []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compilations.append(name)

    update = Learner.update

    def counted(*args):
        done = update(*args)
        by_step.append(len(compilations))
        return done

    monkeypatch.setattr(Learner, "update", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(config_for(model, tmp_path / "run", steps=6, checkpoint=CheckpointConfig(every=6)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert by_step[0] > 0  # the listener does listen
    assert by_step[2:] == by_step[2:3] * 4, by_step


def test_without_reward_variance_grpo_moves_nothing_and_da_grpo_does(model, uninterrupted, tmp_path):
    start = parameters_of_model(model)
    without_kl = dataclasses.replace(algorithm_preset("grpo"), kl_coefficient=0.0)
    grpo = train(config_for(model, tmp_path / "grpo", algorithm=without_kl))
    rows = read_metrics(grpo.output / "metrics.jsonl")
    assert {row["zero_variance_groups"] for row in rows} == {1.0}
    assert {row["gradient_norm"] for row in rows} == {0.0}
    for a, b in zip(parameters(grpo.output), start, strict=True):
        np.testing.assert_array_equal(a, b)
    _, da_grpo = uninterrupted
    assert read_metrics(da_grpo.output / "metrics.jsonl")[0]["zero_variance_groups"] == 1.0
    moved = [np.abs(a - b).max() for a, b in zip(parameters(da_grpo.output), start, strict=True)]
    assert max(moved) > LEARNING_RATE / 2


def parameters_of_model(folder):
    from flax import nnx

    from dcore_jax.weights import load_decoder

    return [np.asarray(x) for x in jax.tree.leaves(nnx.split(load_decoder(folder))[1])]


@pytest.mark.parametrize("algorithm", ["grpo", "da_grpo"])
def test_a_reward_that_can_be_learned_rises(model, tmp_path, letters, algorithm):
    fast = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0.0)
    changes = {"steps": 20, "optimizer": fast, "reward": letters, "checkpoint": CheckpointConfig(every=20)}
    result = train(config_for(model, tmp_path / algorithm, algorithm=algorithm_preset(algorithm), **changes))
    rewards = [row["reward"] for row in read_metrics(result.output / "metrics.jsonl")]
    first, last = np.mean(rewards[:2]), np.mean(rewards[-2:])
    assert last - first > (4 - first) / 2, rewards


def test_a_finished_run_started_again_does_nothing(uninterrupted):
    config, result = uninterrupted
    before = (result.output / "metrics.jsonl").read_text()
    again = train(config)
    assert (again.step, again.first_reward) == (STEPS, None)
    assert (result.output / "metrics.jsonl").read_text() == before


def test_a_changed_config_is_refused_by_name(uninterrupted):
    config, _ = uninterrupted
    with pytest.raises(UserError, match=r"seed: 0 -> 1; algorithm.name: da_grpo -> gspo"):
        train(dataclasses.replace(config, algorithm=algorithm_preset("gspo"), seed=1))


def test_one_step_off_policy_tags_each_sample_with_the_weights_that_made_it(model, tmp_path):
    settings = config_for(model, tmp_path / "stale")
    result = train(dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, staleness=1)))
    rows = read_metrics(result.output / "metrics.jsonl")
    assert [row["weight_version"] for row in rows] == [0, 0, 1, 2]
    assert rows[0]["engine_gap_max"] < 1e-4 < min(row["engine_gap_max"] for row in rows[1:])


MOSTLY_FLAT = """
seen = []

def any_of_them(given):
    seen.append(given.response)
    return float(len(seen) % 7 == 0) if len(seen) > 2 * 16 else 0.0
"""


def test_dynamic_sampling_draws_again_and_keeps_the_size_of_a_step(model, tmp_path):
    (tmp_path / "flat.py").write_text(MOSTLY_FLAT)
    flat = RewardConfig(name=(f"{tmp_path}/flat.py:any_of_them",))
    dynamic = dataclasses.replace(algorithm_preset("da_grpo"), dynamic_sampling=True, max_sampling_rounds=4)
    result = train(config_for(model, tmp_path / "dynamic", algorithm=dynamic, reward=flat, steps=1))
    (row,) = read_metrics(result.output / "metrics.jsonl")
    assert row["sampling_rounds"] > 2 and row["flat_groups_dropped"] >= 8
    assert len(read_metrics(result.output / "rollouts.jsonl")) == 16
    assert row["zero_variance_groups"] < 1


@pytest.mark.slow
def test_every_real_prompt_runs_through_the_loop_and_is_scored_or_counted(model, real_data, tmp_path):
    config = config_for(
        model,
        tmp_path / "rlla",
        data=(str(real_data / "toolrl" / "rlla_test.parquet"),),
        steps=None,
        epochs=1,
        prompts=8,
        updates=1,
        rollout=RolloutConfig(group=2, max_prompt=2032, max_response=16),
        engine=EngineConfig(slots=16, cache_length=2048),
        reward=RewardConfig(name=("toolrl",), call_format="tags"),
    )
    result = train(config)
    report = json.loads((result.output / "data.json").read_text())
    rows = read_metrics(result.output / "rollouts.jsonl")
    assert report["prompts"] + sum(report["rejected"].values()) == 80
    assert report["prompts"] > 20
    assert result.step == -(-report["prompts"] // 8)
    assert len({row["origin"] for row in rows}) == report["prompts"]
    assert len(rows) == 16 * result.step
    assert all(-3 <= row["reward"] <= 4 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("algorithm", ["dr_grpo", "dapo", "gspo", "rest", "rl_zvp", "kl_cov"])
def test_every_algorithm_is_one_word_away(model, tmp_path, letters, algorithm, preset):
    chosen = algorithm_preset(algorithm, preset)
    result = train(config_for(model, tmp_path / "run", algorithm=chosen, reward=letters, steps=2))
    rows = read_metrics(result.output / "metrics.jsonl")
    assert len(rows) == 2
    if (algorithm, preset) == ("rest", "release"):
        # A random model's text has none of the regions, and the release weighs what is outside of them with 0.
        regions = {name for row in rows for name in row if name.startswith("entropy_")}
        assert regions == {"entropy_outside"}
        assert all(row["gradient_norm"] == 0 for row in rows)
    else:
        assert all(row["gradient_norm"] > 0 for row in rows)


@pytest.mark.slow
def test_a_kl_and_an_entropy_in_the_reward_are_trained_on_and_logged(model, tmp_path, letters):
    kl = {"kl_coefficient": 0.0, "reward_kl_coefficient": 0.5}
    algorithm = dataclasses.replace(algorithm_preset("grpo", "release"), **kl)
    reward = RewardConfig(name=(*letters.name, "entropy=-0.5"))
    result = train(config_for(model, tmp_path / "run", algorithm=algorithm, reward=reward, steps=2))
    first, second = read_metrics(result.output / "metrics.jsonl")
    assert (
        abs(first["kl_in_reward"]) < 1e-4 < abs(second["kl_in_reward"])
    )  # the reference is the policy of the first step
    assert first["ref_kl"] == second["ref_kl"] == 0  # none in the loss
    # -log pi of the sampled tokens estimates the entropy: 256 tokens of a nearly uniform model.
    assert first["reward_entropy"] == pytest.approx(-0.5 * first["entropy"], rel=0.1)
    start = json.loads((result.output / "start.json").read_text())
    assert (start["prompts"], start["rollouts"]) == (4, 4) and start["mean"] == pytest.approx(
        first["reward"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 5}, "prompts=5 must be a positive multiple of updates=2"),
        ({"packing": RowConfig(length=30)}, "packing.length=30 must hold a prompt and a response"),
        ({"data": ()}, "no prompts: give --data <files>"),
        ({"model": ""}, "no model: give --model"),
        ({"data": ("prompts.csv",)}, "cannot read this extension"),
    ],
)
def test_a_mistake_is_told_in_one_line(model, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(dataclasses.replace(config_for(model, tmp_path / "run"), **changes))
    assert "\n" not in str(error.value)


def test_fields_of_the_algorithm_can_be_set_one_by_one():
    fields = {"alpha": 0.4, "clip_high": None, "trigger": "below", "dynamic_sampling": True}
    chosen = config_from_dict(RLConfig, {"algorithm": fields}).algorithm
    assert (chosen.alpha, chosen.clip_high, chosen.trigger, chosen.dynamic_sampling) == (
        0.4,
        None,
        "below",
        True,
    )
    assert chosen.advantage == "da_grpo" and chosen.kl_coefficient == 0.001


def test_the_defaults_and_the_config_files_are_the_papers():
    folder = Path(__file__).parents[1] / "configs"
    paper, release = (read_config(RLConfig, folder / f"rl_qwen3_8b{end}.yaml") for end in ("", "_release"))
    for config in (RLConfig(), paper, release):
        assert (config.prompts, config.rollout.group, config.updates, config.epochs) == (32, 8, 4, 3)
        assert (config.rollout.max_prompt, config.rollout.max_response) == (8192, 4096)
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (1e-6, 0.01, 1.0)
        assert (optimizer.schedule, optimizer.warmup, config.rollout.temperature) == ("constant", 0.0, 1.0)
    assert (paper.algorithm.scale, release.algorithm.scale) == (1.0, 2.0)
    assert (paper.reward_preset, release.reward_preset) == ("dcore_paper", "dcore_release")
    nano = read_config(RLConfig, folder / "rl_nano.yaml")
    assert nano.model == "nano"
    assert read_config(SFTConfig, folder / f"{nano.base}.yaml").model == "nano"


def test_a_run_goes_on_with_the_prompts_it_started_with_and_with_no_others(uninterrupted, monkeypatch):
    config, _ = uninterrupted

    def others(*given):
        prompts, report = training_prompts(*given)
        return [prompts[1], prompts[0], *prompts[2:]], report

    monkeypatch.setattr(rl_run, "training_prompts", others)
    with pytest.raises(UserError, match="the data are not those the run started with; restore them or give"):
        train(config)


def test_a_run_whose_engine_or_tracker_did_not_start_leaves_the_folder_free(model, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise UserError("no server")

    monkeypatch.setattr(rl_run, "open_engine", fails)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for trackers, message in (((), "no server"), (("wandb",), "tracker wandb needs the package")):
        with pytest.raises(UserError, match=message):
            train(config_for(model, tmp_path, trackers=trackers))
        assert not (tmp_path / "config.yaml").exists()


def test_a_run_from_the_embedded_base_is_not_exported_where_its_base_is_not_found(
    uninterrupted, tmp_path, monkeypatch
):
    config, result = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(result.output, run)
    for name in ("runs/base/hf", "no/such/folder/here"):
        record_run(config, run, RunRecord("rl", name))
        monkeypatch.chdir(tmp_path)
        message = (
            f"its model {name} is not found from here; start this in the folder that the run was started in"
        )
        with pytest.raises(UserError, match=message):
            load_policy(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_mesh_and_the_lengths_are_held_against_the_model_before_any_work(model, tmp_path, monkeypatch):
    def too_early(*_, **__):
        raise AssertionError("read or trained first")

    monkeypatch.setattr(rl_run, "training_prompts", too_early)
    monkeypatch.setattr(rl_run, "base_model", too_early)
    with pytest.raises(UserError, match="does not divide"):
        train(config_for(model, tmp_path, mesh="tensor=4"))
    long = RolloutConfig(group=4, max_prompt=2000, max_response=100)
    for name in (model, "nano"):
        with pytest.raises(
            UserError, match=r"rollout.max_prompt=2000 and rollout.max_response=100 are 2100 tokens"
        ):
            train(config_for(name, tmp_path, rollout=long))


def test_an_empty_evaluation_file_is_named(model, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    config = config_for(model, tmp_path, evaluation=EvaluationConfig(prompts=2, data=(str(empty),)))
    with pytest.raises(UserError, match=r"empty.jsonl \(evaluation.data\) holds no rows"):
        evaluation_prompts(config, load_tokenizer(model))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": {"alfa": 1}}, r"unknown key algorithm.alfa; did you mean algorithm.alpha\?"),
        ({"algorithm": {"alpha": "much"}}, "algorithm.alpha should be float, not 'much'"),
        ({"algorithm": {"name": "grpo", "alpha": 0.4}}, "algorithm.alpha"),
        ({"algorithm": "ppo"}, "'ppo' is unknown; choose one of da_grpo, grpo"),
        ({"reward": {"preset": "best"}}, "reward 'best' is unknown; choose one of auto, dcore_paper"),
        ({"engine": {"cache_length": -1}}, "engine.cache_length=-1 must be at least 0"),
        (
            {"engine": {"name": "native", "servers": ["http://a"]}},
            "engine.servers is given but the engine is native",
        ),
        ({"engine": "trt"}, "engine.name is 'trt'; choose one of native, vllm, vllm-server"),
    ],
)
def test_a_mistake_in_a_group_is_named(values, message):
    with pytest.raises(UserError, match=message):
        config_from_dict(RLConfig, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"seed": -3}, "seed=-3 must be at least 0"),
        ({"rollout": RolloutConfig(max_prompt=0)}, "rollout.max_prompt=0 must be at least 1"),
        ({"evaluation": EvaluationConfig(prompts=-1)}, "evaluation.prompts=-1 must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        RLConfig(**changes)


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_rest_without_more_words_runs_rest_s_reward_and_numbers(preset):
    config = config_from_dict(RLConfig, {"model": "x", "algorithm": {"name": "rest", "preset": preset}})
    assert config.reward_preset == f"rest_{preset}"
    assert (config.prompts, config.prompts // config.updates, config.rollout.group) == (512, 64, 4)
    assert (config.rollout.max_prompt, config.rollout.max_response, config.epochs) == (2048, 2048, 15)
    assert config.optimizer.learning_rate == 1e-6 and not config.running_algorithm().needs_reference
    given = config_from_dict(RLConfig, {"algorithm": "rest", "rollout": {"group": 8}, "prompts": 64})
    assert (given.prompts, given.rollout.group, given.rollout.max_response) == (64, 8, 2048)
    assert config_from_dict(RLConfig, {"algorithm": "grpo"}).prompts == 32


@pytest.mark.parametrize(
    ("name", "weights", "rates"),
    [
        ("qwen3_4b", (1.0, 0.95, 1.2, 0.8, 0.016), (0.0, -0.003, 0.0, 0.003, 6e-5)),  # Table F.1
        ("llama32_3b", (1.0, 1.0, 1.2, 0.6, 0.6), (0.0, -0.002, 0.0, 0.002, 0.002)),  # Table F.2
    ],
)
def test_the_configs_of_rest_hold_its_tables(name, weights, rates):
    config = read_config(RLConfig, Path(__file__).parents[1] / "configs" / f"rl_rest_{name}.yaml")
    assert config.algorithm.region_weights.table() == weights
    assert config.algorithm.region_rates.table() == rates
    assert config.reward_preset == "rest_paper"
    assert config.algorithm.group_std == "population" and config.algorithm.region_ceilings.parameters == 8.0
    defaults = config_from_dict(RLConfig, {"algorithm": "rest"})
    assert (config.prompts, config.updates, config.epochs) == (
        defaults.prompts,
        defaults.updates,
        defaults.epochs,
    )
    assert config.rollout == defaults.rollout and config.optimizer == defaults.optimizer


@pytest.mark.parametrize(
    ("settings", "cap", "line"),
    [
        ({}, None, ""),
        ({"rollout": {"staleness": 1}}, 2.0, "truncated at 2, in no preset: weights are one step old"),
        ({"engine": "vllm"}, 2.0, "truncated at 2, in no preset: engine vllm computes them itself"),
        ({"engine": "vllm", "algorithm": {"importance_cap": 0.0}}, 0.0, "no weights, although engine vllm"),
        ({"algorithm": {"importance_cap": 1.5}}, 1.5, "truncated at 1.5, in no preset"),
    ],
)
def test_importance_sampling_is_on_where_another_policy_samples_and_the_header_says_so(settings, cap, line):
    config = config_from_dict(RLConfig, {"model": "x", **settings})
    assert config.running_algorithm().importance_cap == cap
    assert line in config.importance_line() and bool(line) == bool(config.importance_line())
    assert (f"importance_cap: None -> {cap}" in config.changed_numbers()) == (cap is not None)


def test_tokens_of_every_script_are_drawn_without_a_warning(tmp_path, recwarn):
    rows = [
        {"token": token, "entropy": 1.0, "count": 2} for token in ("噘", "카", "é", "$x$", "", "\n", "\ud800")
    ]
    plot_token_entropy({"highest": rows, "lowest": rows}, tmp_path / "tokens.png")
    assert (tmp_path / "tokens.png").stat().st_size and not recwarn.list


@pytest.mark.slow
def test_benchmarks_are_played_while_it_trains_and_the_best_checkpoint_stays(model, tmp_path):
    evaluation = EvaluationConfig(every=1, benchmarks=("toolworld:6,kinds=single",))
    config = config_for(
        model, tmp_path, steps=2, evaluation=evaluation, checkpoint=CheckpointConfig(every=9, keep=1)
    )
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["toolworld:6,kinds=single"]) for row in rows] == [(1, 0.0), (2, 0.0)]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1  # a tie: the first stays
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [1, 2]
    assert "Evaluations while it trained" in (tmp_path / "report.html").read_text()
