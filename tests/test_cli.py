"""The `dcore` command: every option has a text, defaults are those that apply, and a mistake is one line."""

import dataclasses
import re
import subprocess
import sys

import pytest

from conftest import CORE_INSTALL
from dcore_jax import UserError, cli
from dcore_jax.chat import ChatConfig
from dcore_jax.cli import doctor
from dcore_jax.cli.export import ExportConfig
from dcore_jax.cli.options import field_texts, nano_or_paper, option_fields, parse_options
from dcore_jax.config import config_names, find_config
from dcore_jax.distill.config import DistillConfig
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig

KINDS = {
    "sft": SFTConfig,
    "rl": RLConfig,
    "distill": DistillConfig,
    "export": ExportConfig,
    "chat": ChatConfig,
}


def help_of(command, *arguments, capsys, monkeypatch, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as error:
        cli.main([command, *arguments, "--help"])
    assert error.value.code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def options_in(text):
    """Options as they stand in the help: one at the beginning of a line, whatever aliases follow it."""
    found = set()
    for line in text.splitlines():
        line = line.lstrip("│┃ ").strip()
        if re.match(r"--[a-z]", line):
            found.add(re.split(r"[ ,]", line)[0])
    return found


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_option_has_a_text_and_none_is_named_after_a_recipe(kind):
    for name, _, text in option_fields(kind):
        assert len(text) > 8, name
        assert not {"sft", "rl", "distill"} & set(re.split(r"[.-]", name)), name


def test_no_two_options_of_a_recipe_share_a_text():
    for kind in KINDS.values():
        groups = {}
        for name, _, text in option_fields(kind):
            groups.setdefault((name.rpartition(".")[0], text), []).append(name)
        assert [names for names in groups.values() if len(names) > 1] == []


@pytest.mark.parametrize(
    ("command", "arguments", "most"),
    [
        ("rl", (), 60),
        ("rl", ("--model", "x", "--algorithm", "dapo"), 60),
        ("rl", ("--model", "x", "--algorithm", "rest"), 60),
        ("rl", ("--model", "x", "--engine", "vllm-server"), 60),
        ("distill", (), 45),
        ("distill", ("--model", "x"), 45),
    ],
)
def test_help_shows_few_options_each_with_a_text(command, arguments, most, capsys, monkeypatch):
    shown = options_in(help_of(command, *arguments, capsys=capsys, monkeypatch=monkeypatch))
    shown -= {
        "--algorithm.name",
        "--algorithm.preset",
        "--engine.name",
        "--reward.name",
    }  # second spellings, on lines of their own
    assert 20 < len(shown) <= most, sorted(shown)
    assert "--config" in shown


def test_help_fits_80_columns_and_begins_with_the_common_options(capsys, monkeypatch):
    text = help_of("rl", capsys=capsys, monkeypatch=monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    places = [
        text.index(f"--{name}") for name in ("model", "data", "output", "algorithm.alpha", "optimizer.")
    ]
    assert places == sorted(places)


def test_the_defaults_shown_are_those_that_will_apply(capsys, monkeypatch):
    def default_of(option, *arguments, command="rl"):
        text = help_of(command, *arguments, capsys=capsys, monkeypatch=monkeypatch, columns=100)
        text = " ".join(text.replace("│", " ").split())
        found = re.search(rf"{re.escape(option)} .*?\(default: (.*?)\)", text)
        assert found, option
        return found[1]

    assert default_of("--optimizer.learning-rate") == "0.0003"  # rl_nano
    assert default_of("--optimizer.learning-rate", "--model", "Qwen/Qwen3-8B") == "1e-06"  # the paper's
    assert default_of("--algorithm.aggregation", "--preset", "release") == "token_mean"
    assert default_of("--algorithm.clip-high", "--algorithm", "dapo") == "0.28"
    assert default_of("--rows", "--config", "sft_qwen3_8b", command="sft") == "16"


def parse(kind, *arguments, nano="rl_nano"):
    return parse_options(kind, arguments, description="", default_config=nano_or_paper(nano))


def test_an_algorithms_numbers_are_typed_options_over_its_preset():
    config = parse(
        RLConfig, "--algorithm", "da_grpo", "--algorithm.alpha", "0.4", "--algorithm.clip-high", "None"
    )
    assert (config.algorithm.name, config.algorithm.alpha, config.algorithm.clip_high) == (
        "da_grpo",
        0.4,
        None,
    )
    release = parse(RLConfig, "--preset", "release", "--algorithm.alpha", "0.4")
    assert (release.algorithm.scale, release.reward_preset) == (2.0, "dcore_release")
    assert parse(RLConfig, "--algorithm=gspo").algorithm.ratio == "sequence"
    rest = parse(RLConfig, "--algorithm", "rest", "--algorithm.region-weights.thinking", "0.5")
    assert rest.algorithm.region_weights.thinking == 0.5
    assert rest.algorithm.region_weights.name == 1.2


def test_a_file_may_write_a_group_as_its_name_alone(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: x\nalgorithm: grpo\nengine: vllm\n")
    config = parse(RLConfig, "--config", str(path))
    assert (config.algorithm.name, config.algorithm.advantage, config.engine.name) == ("grpo", "grpo", "vllm")
    path.write_text("model: x\nalgorithm: {name: da_grpo, alpha: 0.3}\n")
    assert parse(RLConfig, "--config", str(path)).algorithm.alpha == 0.3
    assert parse(RLConfig, "--config", str(path), "--algorithm.delta", "0.2").algorithm.alpha == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--algorithm", "grpo", "--algorithm.alpha", "0.4"),
            "--algorithm.alpha is no option here: grpo does not use it",
        ),
        (("--engine.servers", "http://a"), "--engine.servers is no option here: only vllm-server has it"),
        (
            ("--algorithm.ratio", "sequence"),
            "it would make another algorithm of da_grpo; set it in a config file",
        ),
        (("--model", "x", "--base", "base_nano"), "--base is no option here"),
        (("--algorithm", "ppo"), "'ppo' is unknown; choose one of da_grpo"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(RLConfig, *arguments)


def test_with_a_vllm_engine_importance_weights_are_truncated_unless_a_cap_is_given():
    config = parse(RLConfig, "--model", "x", "--engine", "vllm")
    assert config.running_algorithm().importance_cap == 2.0
    never = parse(RLConfig, "--model", "x", "--engine", "vllm", "--algorithm.importance-cap", "0")
    assert never.running_algorithm().importance_cap == 0.0
    assert parse(RLConfig, "--model", "x").running_algorithm().importance_cap is None
    stale = parse(RLConfig, "--rollout.staleness", "1", "--algorithm.importance-cap", "2")
    assert stale.running_algorithm().importance_cap == 2.0


def test_configs_are_found_by_name_and_by_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert find_config("sft_qwen3_8b").name == "sft_qwen3_8b.yaml"
    with pytest.raises(UserError, match=r"sft_qwen3_9b: no such config file; did you mean .*sft_qwen3_8b"):
        find_config("sft_qwen3_9b")
    (tmp_path / "sft_qwen3_8b").write_text("rows: 3\n")  # a path comes first
    assert find_config("sft_qwen3_8b").read_text() == "rows: 3\n"
    cli.main(["configs"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in config_names())
    assert all(len(line.split(maxsplit=1)) == 2 for line in listed.splitlines())
    cli.main(["configs", "rl_qwen3_8b"])
    assert "preset: paper" in capsys.readouterr().out


def test_the_overview_names_every_command_and_a_wrong_one_is_one_line(capsys):
    cli.main([])
    text = capsys.readouterr().out
    assert all(command in text for command in cli.COMMANDS)
    with pytest.raises(SystemExit) as error:
        cli.main(["sfft"])
    assert error.value.code == 1
    assert capsys.readouterr().err == "error: dcore has no command 'sfft'; did you mean sft?\n"


def test_doctor_says_in_ten_lines_what_this_machine_can_do(capsys):
    cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    text = "\n".join(lines)
    for word in (
        "CPU",
        "jax 0.",
        "xla in blocks",
        "native",
        "host memory free",
        "metrics.jsonl",
        "model hub",
    ):
        assert word in text
    _, works = doctor.report()
    assert works


def test_doctor_tells_that_no_device_is_found_and_what_to_install(monkeypatch, capsys):
    import jax

    def none():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(SystemExit) as error:
        cli.main(["doctor"])
    assert error.value.code == 1
    text = capsys.readouterr().out
    assert "JAX finds no device: Unable to initialize backend" in text
    assert "pip install 'dcore-jax[cuda]'" in text


def test_the_scripts_and_the_command_are_the_same_doors(tmp_path):
    texts = [
        subprocess.run(
            [sys.executable, *door, "--help"], env=CORE_INSTALL, capture_output=True, text=True, check=True
        ).stdout
        for door in (["scripts/train_sft.py"], ["-c", "from dcore_jax.cli import main; main()", "sft"])
    ]
    assert texts[0] == texts[1]
    assert "--packing.length" in texts[0]


def test_texts_are_read_from_the_strings_under_the_fields():
    @dataclasses.dataclass
    class Example:
        """A group."""

        a: int = 1
        """The first
        of them."""
        b: int = 2

    assert field_texts(Example) == {"a": "The first of them."}
