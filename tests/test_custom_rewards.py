"""Rewards of one's own and mixes: what they are given, what they may return, and mistakes in one line."""

import dataclasses
import json
from pathlib import Path

import pytest

from dcore_jax import UserError
from dcore_jax.calls import Call
from dcore_jax.cli.options import nano_or_paper, parse_options
from dcore_jax.config import config_from_dict
from dcore_jax.engines import EngineConfig
from dcore_jax.metrics import read_metrics
from dcore_jax.nano import NanoConfig, embedded_model
from dcore_jax.rewards import PRESETS, RewardInput, load_reward, open_rewards, parse_reward_spec
from dcore_jax.rl import EvaluationConfig, RewardConfig, RLConfig, RolloutConfig, summary, train
from dcore_jax.rl import run as rl_run
from dcore_jax.training import ComputeConfig

REFERENCE = (Call("weather", {"city": "Oslo"}),)
RIGHT = '<think>\nLook it up.\n</think>\n\n[weather(city="Oslo")]'
GIVEN = RewardInput(RIGHT, REFERENCE, origin="rows.jsonl:3", tokens=12)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes `my_rewards.py` into the working directory."""
    monkeypatch.chdir(tmp_path)

    def written(text, name="my_rewards.py"):
        Path(name).write_text(text)
        return name

    return written


def test_a_number_is_a_part_of_the_functions_name_and_a_dict_its_parts(write):
    write("def score(given):\n    return 2\n\ndef parts(given):\n    return {'a': True, 'b': -0.5}\n")
    assert load_reward("my_rewards.py:score")(GIVEN) == (2.0, {"score": 2.0}, None)
    assert load_reward("my_rewards.py:parts")(GIVEN) == (0.5, {"a": 1.0, "b": -0.5}, None)


def test_it_is_given_the_prompt_the_response_the_calls_the_reference_and_the_progress(write):
    write(
        "def score(given):\n"
        "    assert given.messages == ({'role': 'user', 'content': 'Rain?'},) and given.tools is None\n"
        "    assert given.response.startswith('<think>') and given.thought == 'Look it up.' and given.reply == ''\n"
        "    assert given.calls == given.reference and given.correct and given.expects_reply is None\n"
        "    assert (given.category, given.origin, given.tokens, given.truncated) == ('rain', 'rows.jsonl:3', 12, False)\n"
        "    return given.progress\n"
    )
    given = dataclasses.replace(
        GIVEN, messages=({"role": "user", "content": "Rain?"},), category="rain", progress=0.25
    )
    assert load_reward("my_rewards.py:score")(given).total == 0.25


@pytest.mark.parametrize(
    "value",
    ["np.float32(1.5)", "np.array(1.5)", "jnp.float32(1.5)", "Fraction(3, 2)", "{'score': np.float64(1.5)}"],
)
def test_any_kind_of_number_is_read(write, value):
    write(
        "import numpy as np\nimport jax.numpy as jnp\nfrom fractions import Fraction\n"
        f"def score(given):\n    return {value}\n"
    )
    assert load_reward("my_rewards.py:score")(GIVEN) == (1.5, {"score": 1.5}, None)


def test_what_a_function_changes_it_changes_for_itself(write):
    write(
        "def score(given):\n"
        "    given.messages[0]['content'] = 'other'\n"
        "    given.tools[0]['function']['name'] = 'other'\n"
        "    given.reference[0].arguments['city'] = 'Rome'\n"
        "    given.calls[0].arguments.clear()\n"
        "    return 1.0\n"
    )
    given = RewardInput(
        RIGHT,
        (Call("weather", {"city": "Oslo"}),),
        messages=({"role": "user", "content": "Rain?"},),
        tools=({"function": {"name": "weather"}},),
    )
    load_reward("my_rewards.py:score")(given)
    assert given.messages == ({"role": "user", "content": "Rain?"},)
    assert given.tools == ({"function": {"name": "weather"}},)
    assert given.correct and given.reference == REFERENCE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"failed at my_rewards.py:2 on rows.jsonl:3: ZeroDivisionError: division by zero"),
        ("return helper(given)", r"failed at my_rewards.py:5 on rows.jsonl:3: KeyError: 'city'"),
        ("return json.loads('{')", r"failed at my_rewards.py:2 on rows.jsonl:3: JSONDecodeError: Expecting"),
        ("raise SystemExit(3)", r"failed at my_rewards.py:2 on rows.jsonl:3: SystemExit: 3"),
        ("raise ValueError('one\\ntwo')", r"on rows.jsonl:3: ValueError: one$"),
        ("return float('nan')", r"\(my_rewards.py:1\) returned nan for rows.jsonl:3; return a finite number"),
        ("return -float('inf')", r"\(my_rewards.py:1\) returned -inf for rows.jsonl:3"),
        ("return 1e30", r"\(my_rewards.py:1\) returned 1e\+30 for rows.jsonl:3"),
        ("return 10 ** 400", r"\(int\) for rows.jsonl:3"),
        ("return {'a': 1.0, 'b': float('nan')}", r"returned nan as part 'b' for rows.jsonl:3"),
        ("return None", r"returned None \(NoneType\) for rows.jsonl:3"),
        ("return '1'", r"returned '1' \(str\) for rows.jsonl:3"),
        ("return [1.0]", r"returned \[1.0\] \(list\) for rows.jsonl:3"),
        ("return (i for i in 'ab')", r"\(generator\) for rows.jsonl:3"),
        ("return {'a': 'good'}", r"returned 'good' \(str\) as part 'a' for rows.jsonl:3"),
        ("return {'a': {'b': 1}}", r"returned \{'b': 1\} \(dict\) as part 'a' for rows.jsonl:3"),
        ("return {}", r"returned no part for rows.jsonl:3"),
        ("return {1: 1.0}", r"returned a part named 1 for rows.jsonl:3"),
        ("return {'a\\nb': 1.0}", r"returned a part named 'a\\nb' for rows.jsonl:3"),
        ("return {' ': 1.0}", r"returned a part named ' ' for rows.jsonl:3"),
    ],
)
def test_a_wrong_result_names_the_function_its_line_and_the_row(write, body, message):
    write(f"def score(given):\n    import json; {body}\n\ndef helper(given):\n    return {{}}['city']\n")
    with pytest.raises(UserError, match=message) as error:
        load_reward("my_rewards.py:score")(GIVEN)
    assert str(error.value).startswith("reward my_rewards.py:score") and "\n" not in str(error.value)


def test_parts_that_change_their_names_are_refused(write):
    write(
        "def score(given):\n    return {'a': 1.0, 'b': 0.0} if given.calls else {'a': 1.0}\n"
        "def other(given):\n    return {'a': 1.0} if given.calls else 1.0\n"
    )
    silent = RewardInput("No.", origin="rows.jsonl:4")
    for name, before in (("score", "a, b"), ("other", "a")):
        reward = load_reward(f"my_rewards.py:{name}")
        reward(GIVEN)
        message = rf"returned the parts .* for rows.jsonl:4 and {before} before; return the same names"
        with pytest.raises(UserError, match=message):
            reward(silent)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "score", r"no_rewards.py cannot be read \(No such file or directory\)"),
        ("def scored(given):\n    return 1\n", "score", r"has no function score; did you mean scored\?"),
        ("score = 3\n", "score", "has no function score; it has none"),
        ("def score():\n    return 1\n", "score", r"\(no_rewards.py:1\): score must take one argument"),
        (
            "def score(a, b):\n    return 1\n",
            "score",
            r"score must take one argument, the RewardInput",
        ),
        (
            "import nowhere\n",
            "score",
            "cannot be executed at no_rewards.py:1: ModuleNotFoundError: No module",
        ),
        ("x = 1\nexit(2)\n", "score", "cannot be executed at no_rewards.py:2: SystemExit"),
        ("def score(given):\n    return (\n", "score", r"cannot be executed at no_rewards.py:2: SyntaxError"),
    ],
)
def test_a_file_or_function_that_is_missing_is_told_when_it_is_opened(write, text, name, message):
    if text is not None:
        write(text, "no_rewards.py")
    with pytest.raises(UserError, match=message) as error:
        load_reward(f"no_rewards.py:{name}")
    assert str(error.value).startswith(f"reward no_rewards.py:{name}") and "\n" not in str(error.value)


def test_a_file_may_import_its_neighbour_and_hold_dataclasses(write):
    write("BONUS = 0.5\n", "neighbour_of_rewards.py")
    write(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from neighbour_of_rewards import BONUS\n"
        "@dataclass\nclass Point:\n    x: float\n"
        "class Scorer:\n    def __call__(self, given):\n        return Point(BONUS).x\n"
        "score = Scorer()\nlast = lambda given, weight=2: BONUS * weight\n"
    )
    assert load_reward("my_rewards.py:score")(GIVEN).parts == {"score": 0.5}
    assert load_reward("my_rewards.py:last")(GIVEN).parts == {"last": 1.0}


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("dcore_paper", "dcore_paper", 1.0),
        ("toolrl=0.5", "toolrl", 0.5),
        ("my.py:f", "my.py:f", 1.0),
        ("a/b=c/my.py:f", "a/b=c/my.py:f", 1.0),
        ("a=b/my.py:f=-1e-2", "a=b/my.py:f", -0.01),
        ("auto=2", "auto", 2.0),
    ],
)
def test_a_reward_is_named_alone_or_with_a_weight(text, name, weight):
    assert parse_reward_spec(text, further=("auto",)) == (name, weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "reward 'best' is unknown; choose one of dcore_paper"),
        ("my.py", "a file is given with its function, my_rewards.py:score"),
        ("my.txt:f", "reward 'my.txt:f' is unknown"),
        ("my.py:f g", "reward 'my.py:f g' is unknown"),
        ("toolrl=0", "reward toolrl=0: the weight after = must be a finite number other than 0"),
        ("toolrl=nan", "must be a finite number"),
        ("toolrl=", "must be a finite number"),
        ("toolrl=half", "must be a finite number"),
        ("", "reward '' is unknown"),
    ],
)
def test_a_reward_that_is_not_known_is_named(text, message):
    with pytest.raises(UserError, match=message):
        parse_reward_spec(text)


def test_several_rewards_add_up_by_part_and_weight(write):
    write(
        "def brevity(given):\n    return -given.tokens\n\ndef tone(given):\n    return {'a': 1.0, 'b': 2.0}\n"
    )
    mix = open_rewards(["dcore_paper", "my_rewards.py:brevity=0.01", "my_rewards.py:tone=-0.5"])
    assert str(mix) == "dcore_paper + my_rewards.py:brevity=0.01 + my_rewards.py:tone=-0.5"
    assert mix.weights == {"dcore_paper": 1.0, "brevity": 0.01, "tone": -0.5}
    reward = mix(GIVEN)
    assert reward.parts == {
        **{f"dcore_paper.{part}": 1.0 for part in ("format", "struct", "key", "value")},
        "brevity": -0.12,
        "tone.a": -0.5,
        "tone.b": -1.0,
    }
    assert reward.total == sum(reward.parts.values()) == pytest.approx(2.38)
    assert mix.range(GIVEN) is None
    assert open_rewards(["dcore_paper"])(GIVEN).parts == dict.fromkeys(
        ("format", "struct", "key", "value"), 1.0
    )


def test_two_functions_of_one_name_are_told_apart_by_their_files(write, tmp_path):
    write("def score(given):\n    return 1\n", "one.py")
    write("def score(given):\n    return 2\n", "two.py")
    (tmp_path / "again").mkdir()
    write("def score(given):\n    return 4\n", "again/one.py")
    assert open_rewards(["one.py:score", "two.py:score"])(GIVEN).parts == {"one.score": 1.0, "two.score": 2.0}
    names = ["one.py:score", "again/one.py:score", "two.py:score=0.5"]
    assert open_rewards(names)(GIVEN).parts == {
        "one.py:score": 1.0,
        "again/one.py:score": 4.0,
        "two.score": 1.0,
    }


@pytest.mark.parametrize("weight", [2.0, -0.5])
@pytest.mark.parametrize("reference", [REFERENCE, ()])
def test_the_range_of_a_mix_of_presets_is_reached_by_a_perfect_answer(weight, reference):
    given = RewardInput(
        RIGHT if reference else "<think>\nNone fits.\n</think>\n\nNo.", reference, step=75, progress=0.5
    )
    for preset in PRESETS:
        mix = open_rewards([f"{preset}={weight}"])
        low, high = mix.range(given)
        assert mix(given).total == pytest.approx(high if weight > 0 else low), preset
    low, high = open_rewards([f"{preset}={weight}" for preset in PRESETS]).range(given)
    single = [open_rewards([f"{preset}={weight}"]).range(given) for preset in PRESETS]
    assert (low, high) == pytest.approx(tuple(map(sum, zip(*single))))


def test_progress_is_that_of_the_run_and_in_rests_release_that_of_150_steps():
    given = dataclasses.replace(GIVEN, step=15, progress=0.5)
    assert open_rewards(["rest_paper"])(given).total == pytest.approx(1.0)
    assert open_rewards(["rest_release"])(given).parts == pytest.approx({"format": 1.9, "correctness": 2.1})


def test_mistakes_of_a_mix_are_named(write):
    write("def score(given):\n    return 9e14\n")
    with pytest.raises(UserError, match="no reward is named"):
        open_rewards([])
    with pytest.raises(UserError, match="reward toolrl is named twice"):
        open_rewards(["toolrl", "toolrl=2"])
    with pytest.raises(UserError, match=r"the rewards of rows.jsonl:3 add up to 9e\+16, beyond 1e\+15"):
        open_rewards(["my_rewards.py:score=100"])(GIVEN)


def test_the_earlier_spelling_and_the_short_ones_are_the_same_config():
    expected = RLConfig(reward=RewardConfig(name=("toolrl",), call_format="tags"))
    for group in ({"name": ["toolrl"]}, {"name": "toolrl"}, {"preset": "toolrl"}):
        assert config_from_dict(RLConfig, {"reward": {**group, "call_format": "tags"}}) == expected
    mix = ["dcore_paper", "my_rewards.py:score=0.5"]
    assert config_from_dict(RLConfig, {"reward": mix}).reward.name == tuple(mix)
    assert config_from_dict(RLConfig, {"reward": "toolrl"}).reward_preset == "toolrl"
    assert RLConfig().reward_preset == "dcore_paper"
    with pytest.raises(UserError, match=r"reward.preset is the earlier name of reward.name"):
        config_from_dict(RLConfig, {"reward": {"preset": "toolrl", "name": "toolrl"}})
    with pytest.raises(UserError, match="reward dcore_paper is named twice"):
        config_from_dict(RLConfig, {"reward": ["auto", "dcore_paper"]})


def test_on_the_command_line_a_mix_is_a_list_and_the_earlier_spelling_still_works(tmp_path):
    def parse(*arguments):
        return parse_options(RLConfig, arguments, description="", default_config=nano_or_paper("rl_nano"))

    mix = parse("--reward", "dcore_paper", "my_rewards.py:score=0.5", "--seed", "3")
    assert (mix.reward.name, mix.seed) == (("dcore_paper", "my_rewards.py:score=0.5"), 3)
    assert parse("--reward.preset", "toolrl").reward == parse("--reward=toolrl").reward
    (tmp_path / "betas.yaml").write_text("reward: {name: [toolrl, rest_paper=2], beta_format: 0.5}\n")
    assert parse("--config", str(tmp_path / "betas.yaml")).reward.beta_format == 0.5
    with pytest.raises(UserError, match=r"--reward.beta-format is no option here: it weighs"):
        parse("--reward", "toolrl", "--reward.beta-format", "0.5")
    with pytest.raises(UserError, match="--reward is given twice"):
        parse("--reward", "toolrl", "--reward.preset", "rest_paper")
    (tmp_path / "old.yaml").write_text("reward: {preset: toolrl, call_format: tags}\n")
    old = parse("--config", str(tmp_path / "old.yaml"))
    assert (old.reward.name, old.reward.call_format) == (("toolrl",), "tags")
    changed = parse("--config", str(tmp_path / "old.yaml"), "--reward", "my_rewards.py:score")
    assert (changed.reward.name, changed.reward.call_format) == (("my_rewards.py:score",), "tags")


MINE = """
def brevity(given):
    \"\"\"1 for an empty response, 0 at the limit; and whether it was cut off.\"\"\"
    return {"short": 1 - given.tokens / 16, "ended": not given.truncated}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return embedded_model(tmp_path_factory.mktemp("model"), NanoConfig(hidden=64, layers=1), seed=0)


def config_for(model, output, *rewards, **changes):
    return RLConfig(
        model=str(model),
        data=("toolworld:8,kinds=single,subtasks=1",),
        output=str(output),
        mesh="1",
        steps=2,
        prompts=2,
        updates=1,
        rollout=RolloutConfig(group=4, max_prompt=160, max_response=16),
        engine=EngineConfig(slots=8, cache_length=176),
        compute=ComputeConfig(dtype="float32", remat="none"),
        evaluation=EvaluationConfig(prompts=2),
        reward=RewardConfig(name=rewards),
        **changes,
    )


def test_a_run_on_a_mix_shows_every_part_and_goes_on_only_with_the_same_file(
    model, write, tmp_path, capsys, monkeypatch
):
    write(MINE)
    config = config_for(model, tmp_path / "run", "dcore_paper", "my_rewards.py:brevity=0.5")
    result = train(config)
    header = capsys.readouterr().out
    assert "dcore_paper + my_rewards.py:brevity=0.5, calls in python" in header
    assert "dcore_paper D-CORE's" in header

    parts = {
        *(f"dcore_paper.{name}" for name in ("format", "struct", "key", "value")),
        "brevity.short",
        "brevity.ended",
    }
    rows = read_metrics(result.output / "metrics.jsonl")
    for row in rows:
        assert {name.removeprefix("reward_") for name in row if name.startswith("reward_")} == parts
        assert row["reward"] == pytest.approx(sum(row[f"reward_{part}"] for part in parts))
        assert (row["weight/dcore_paper"], row["weight/brevity"]) == (1.0, 0.5)
    for row in read_metrics(result.output / "rollouts.jsonl"):
        assert row["reward_parts"].keys() == parts
        assert row["reward_weights"] == {"dcore_paper": 1.0, "brevity": 0.5}
        assert row["reward_parts"]["brevity.short"] == pytest.approx(0.5 * (1 - row["tokens"] / 16))
        assert row["reward_parts"]["brevity.ended"] == 0.5 * (row["finish_reason"] != "length")
    for row in read_metrics(result.output / "evaluation.jsonl"):
        assert row["reward"] == pytest.approx(sum(row[f"reward_{part}"] for part in parts))
    assert (result.output / "reward_parts.png").read_bytes().startswith(b"\x89PNG")
    assert "brevity.short" in summary(result)
    recorded = json.loads((result.output / "rewards.json").read_text())
    assert recorded["weights"] == {"dcore_paper": 1.0, "brevity": 0.5}

    def too_early(*_, **__):
        raise AssertionError("read first")

    monkeypatch.setattr(rl_run, "training_prompts", too_early)
    monkeypatch.setattr(rl_run, "read_model_config", too_early)
    write(MINE + "\n")
    message = "the file of reward my_rewards.py:brevity is not the one that the run started with; restore it"
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, steps=4))
    with pytest.raises(UserError, match=r"reward.name: .*=0.5.* -> .*=0.25"):
        train(config_for(model, tmp_path / "run", "dcore_paper", "my_rewards.py:brevity=0.25"))
    Path("my_rewards.py").unlink()
    with pytest.raises(UserError, match=r"my_rewards.py cannot be read"):
        train(config)


def test_a_reward_that_fails_in_a_run_names_the_row_of_the_file(model, write, tmp_path):
    write("def score(given):\n    return given.calls[3].name\n")
    row = {"messages": [{"role": "user", "content": "rain?"}], "reference": []}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    config = config_for(model, tmp_path / "run", "my_rewards.py:score")
    with pytest.raises(UserError, match=r"my_rewards.py:score failed at my_rewards.py:2 on .*rows.jsonl:1"):
        train(dataclasses.replace(config, data=("rows.jsonl",), evaluation=EvaluationConfig()))
