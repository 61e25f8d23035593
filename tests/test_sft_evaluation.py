"""An SFT run that evaluates while it trains: held-out loss, tool-world tasks, the best checkpoint kept."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from dcore_jax import UserError
from dcore_jax.checkpoint import Checkpoints
from dcore_jax.cli.options import parse_options
from dcore_jax.data.chat_template import ChatTemplate
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.evaluation.toolworld_benchmark import parse_tasks
from dcore_jax.metrics import read_metrics
from dcore_jax.nano import NanoConfig
from dcore_jax.player import PlayableModel, evaluators, scripted_engine
from dcore_jax.player.evaluators import EvaluationLog, Score, evaluators_of
from dcore_jax.sft import PackingConfig, SFTConfig, train
from dcore_jax.toolworld.task import REFUSAL
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig
from dcore_jax.weights import local_folder

CONFIG = SFTConfig(
    model="nano",
    data=("toolworld:40,subtasks=1-1",),
    eval_data=("toolworld:40,subtasks=1-1",),
    eval_every=2,
    mesh="1",
    steps=5,
    rows=4,
    accumulation=2,
    packing=PackingConfig(length=384),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    compute=ComputeConfig(dtype="float32", remat="none"),
    checkpoint=CheckpointConfig(every=100, keep=1),
    nano=NanoConfig(hidden=64, layers=1),
)


def test_held_out_loss_falls_and_the_best_step_is_kept(tmp_path):
    """On the data that it trains on, the loss is known: that of the training steps, nearly."""
    train(replace(CONFIG, output=str(tmp_path)))
    rows = read_metrics(tmp_path / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 5]
    losses, trained = [row["eval_loss"] for row in rows], read_metrics(tmp_path / "metrics.jsonl")
    assert losses == sorted(losses, reverse=True)
    assert trained[-1]["loss"] < losses[0] < trained[0]["loss"]
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"step": 5, "name": "eval_loss", "value": losses[-1]}
    assert "Evaluations while it trained" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_best_checkpoint_stays_and_samples_are_written(tmp_path, monkeypatch):
    """Scores that fall after the first evaluation: its checkpoint outlives later ones."""
    scores = iter([0.5, 0.25, 0.5])
    seen = []

    def evaluator(argument):
        assert argument == "7"

        def evaluate(model):
            seen.append(model.notation)
            return Score(next(scores), {"by_state": 0.1}, [{"question": "q", "turns": ["t"]}])

        return evaluate

    module = ModuleType("an_evaluator")
    module.make = evaluator
    monkeypatch.setitem(sys.modules, "an_evaluator", module)
    monkeypatch.setitem(evaluators.EVALUATORS, "toolworld", "an_evaluator:make")
    config = replace(
        CONFIG, eval=("toolworld:7",), eval_data=(), checkpoint=CheckpointConfig(every=1, keep=1)
    )
    train(replace(config, output=str(tmp_path)))
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "step": 2,
        "name": "toolworld:7",
        "value": 0.5,
    }
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5]
    rows = read_metrics(tmp_path / "evaluations.jsonl")
    assert [(row["step"], row["toolworld:7"], row["toolworld:7.by_state"]) for row in rows] == [
        (2, 0.5, 0.1), (4, 0.25, 0.1), (5, 0.5, 0.1),
    ]  # fmt: skip
    samples = read_metrics(tmp_path / "evaluation_samples.jsonl")
    assert samples[0] == {"step": 2, "evaluation": "toolworld:7", "question": "q", "turns": ["t"]}
    assert seen == ["python"] * 3
    assert Checkpoints(tmp_path, keep=None).find(2) == 2


def test_later_rows_of_an_earlier_start_are_dropped(tmp_path):
    first = EvaluationLog(tmp_path, {}, 0)
    assert [first.run(step, None, loss) for step, loss in ((1, 3.0), (2, 4.0), (3, 1.0))] == [
        True,
        False,
        True,
    ]
    first.close()
    again = EvaluationLog(tmp_path, {}, 2)
    assert again.best is None  # the best one was of a step that is done again
    assert again.run(3, None, 2.0)
    again.close()
    assert [row["step"] for row in read_metrics(tmp_path / "evaluations.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("tool_world",), "evaluation 'tool_world' is unknown; choose one of toolworld"),
        (("toolworld", "toolworld"), "given twice"),
        (("toolworld:3,split=nowhere",), "nowhere"),
        (("bfcl",), "no category of BFCL; write bfcl:live_simple"),
        (("bfcl:simple,steps=2",), "bfcl has no setting steps"),
        (("bfcl:simple,limit=few",), "limit=few of bfcl is no number"),
        (("bfcl:simple,version=v9",), "'v9' is unknown; choose one of v3, v4"),
    ],
)
def test_mistakes_in_eval_are_told_in_a_line(specs, message):
    with pytest.raises(UserError, match=message):
        evaluators_of(specs)


def test_eval_every_is_an_option_where_something_is_evaluated():
    for given in (
        ["--eval", "toolworld:9", "toolworld:8"],
        ["--eval-data", "held_out.jsonl"],
        ["--eval=toolworld"],
    ):
        config = parse_options(
            SFTConfig, [*given, "--eval-every", "7"], description="", default_config=lambda _: "sft_nano"
        )
        assert config.eval_every == 7 and (config.eval or config.eval_data)
    with pytest.raises(UserError, match="eval-every is no option here: it is for --eval-data and --eval"):
        parse_options(SFTConfig, ["--eval-every", "7"], description="", default_config=lambda _: "sft_nano")


def test_toolworld_evaluates_sixty_tasks_unless_told_otherwise():
    folder = local_folder("nano-base")
    tokenizer = load_tokenizer(folder)
    for spec, count in (("toolworld", 60), ("toolworld:5", 5), ("toolworld:seed=3", 60)):
        engine = scripted_engine(tokenizer, lambda number, turn: REFUSAL)
        template, ends = ChatTemplate(tokenizer), frozenset({tokenizer.eos_token_id})
        score = evaluators_of([spec])[spec](
            PlayableModel("m", folder, engine, template, ends, "python", 1088, 900)
        )
        tasks = parse_tasks(f"{count},seed=3" if "seed" in spec else str(count)).tasks()
        assert score.accuracy == sum(not task.reference for task in tasks) / count
        assert score.samples[0]["question"] == tasks[0].query and score.samples[0]["turns"] == [REFUSAL]
