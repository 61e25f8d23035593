"""The nano tokenizer: reproducible, loaded by transformers, and kind to copying."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import dcore_jax
from dcore_jax.calls import parse_response, render_calls
from dcore_jax.errors import UserError
from dcore_jax.nano import build_tokenizer, nano_config
from dcore_jax.nano.tokenizer import END, PAD, START, TAGS
from dcore_jax.toolworld import KINDS, generate_tasks, to_record
from dcore_jax.toolworld.family import VALUE_LETTERS

TASKS = generate_tasks(200, seed=11) + generate_tasks(40, seed=11, kinds=["missing", "mixed"])
BUILD = "import sys; from dcore_jax.nano import build_tokenizer; build_tokenizer(sys.argv[1])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nano")


@pytest.fixture(scope="module")
def built(folder):
    """The tokenizer as it was built, saved beside the config it goes with, as a model folder has them."""
    tokenizer = build_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(nano_config(tokenizer)))
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(folder, built):
    return AutoTokenizer.from_pretrained(folder)


def render(tokenizer, record, upto=None, **options):
    return tokenizer.apply_chat_template(
        record["messages"][:upto], tools=record["tools"], tokenize=False, **options
    )


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_files_are_the_same_bytes_in_another_process(folder, built, tmp_path):
    env = {"PYTHONHASHSEED": "5", "PATH": "", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = str(Path(dcore_jax.__file__).parents[1])
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], check=True, env=env)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "tokenizer.json" in names and "chat_template.jinja" in names
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_transformers_loads_the_tokenizer_that_was_built(tokenizer, built):
    for task in TASKS[:40]:
        text = render(tokenizer, to_record(task))
        assert ids_of(tokenizer, text) == ids_of(built, text)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize("call_format", ["python", "tags", "qwen"])
def test_rendering_encodes_and_decodes_to_itself(tokenizer, call_format):
    for task in TASKS:
        text = render(tokenizer, to_record(task, call_format=call_format))
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("text", ["héllo  wörld\r\n\t 漢字 🙂", '{"a": [1.5, null]}', " ___ --- k42k42"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("call_format", ["python", "qwen"])
def test_the_prompt_of_each_turn_is_a_prefix_of_the_conversation(tokenizer, call_format):
    turns = 0
    for task in TASKS:
        record = to_record(task, call_format=call_format)
        whole = render(tokenizer, record)
        for k, message in enumerate(record["messages"]):
            if message["role"] == "assistant":
                prompt = render(tokenizer, record, k, add_generation_prompt=True)
                assert prompt.endswith(f"{START}assistant\n")
                assert whole.startswith(prompt)
                assert parse_response(whole[len(prompt) :].split(END)[0], call_format).error is None
                # What the model reads at inference is what it read in training: the cut is between tokens.
                ids = ids_of(tokenizer, prompt)
                assert ids_of(tokenizer, whole)[: len(ids)] == ids
                turns += 1
    assert turns > 400


def test_every_tag_and_every_digit_is_one_token(tokenizer):
    for text in (PAD, START, END, *TAGS, *"0123456789"):
        assert len(ids_of(tokenizer, text)) == 1, text
    assert len(ids_of(tokenizer, "2048")) == 4
    assert len(tokenizer.decode(ids_of(tokenizer, f"<think>x</think>{END}"), skip_special_tokens=True)) == 16


def test_every_word_of_the_world_is_one_token(tokenizer):
    assert len(tokenizer) <= 1088
    for task in TASKS:
        for text in (task.query, task.answer, *task.subtasks, *task.responses):
            pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
            assert len(ids_of(tokenizer, text)) == len(pieces), text


@pytest.mark.parametrize("value", ["k4", "a0", "x9"])
def test_a_value_is_the_same_token_wherever_it_stands(tokenizer, value):
    (wanted,) = ids_of(tokenizer, value)
    for around in ("file {}", 'file="{}")]', '{{"file": "{}"}}', "step 1: write {} to file\n", "({}), {}."):
        ids = ids_of(tokenizer, around.format(value, value))
        assert ids.count(wanted) == around.count("{}")


def test_every_value_is_in_the_vocabulary(tokenizer):
    assert {
        len(ids_of(tokenizer, f"{letter}{digit}")) for letter in VALUE_LETTERS for digit in range(10)
    } == {1}


def test_samples_are_short(tokenizer):
    """Bounds a little above what was measured: 98, 177, 167, 71, 68 and 196 tokens."""
    bounds = {
        "single": 105,
        "sequential": 190,
        "parallel": 180,
        "irrelevant": 76,
        "missing": 76,
        "mixed": 210,
    }
    medians, longest = {}, 0
    for kind in KINDS:
        records = [to_record(task) for task in generate_tasks(60, seed=12, kinds=[kind])]
        lengths = [len(ids_of(tokenizer, render(tokenizer, record))) for record in records]
        medians[kind], longest = statistics.median(lengths), max(longest, *lengths)
    print(f"median tokens {medians}, longest {longest}")
    assert all(40 < medians[kind] <= bound for kind, bound in bounds.items()), medians
    assert longest <= 512


# ---- the chat template ----


def test_tool_calls_are_written_as_the_qwen_format_writes_them(tokenizer):
    task = next(task for task in TASKS if task.kind == "parallel")
    record = to_record(task, call_format="qwen")
    text = render(tokenizer, record | {"messages": record["messages"][:2]})
    assert f"</think>\n\n{render_calls(task.reference, 'qwen')}{END}" in text
    text = render(tokenizer, record)
    responses = "\n".join(f"<tool_response>\n{r}\n</tool_response>" for r in task.responses)
    assert f"{START}user\n{responses}{END}\n" in text


def test_thinking_is_kept_in_the_last_turn_alone(tokenizer):
    think = "<think>\nhm\n</think>\n\n"
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": think + "first"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": think + "[f()]"},
        {"role": "user", "content": "<tool_response>\n{}\n</tool_response>"},
        {"role": "assistant", "content": "last", "reasoning_content": "hm"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        f"{START}system\nbe short{END}\n{START}user\none{END}\n{START}assistant\nfirst{END}\n"
        f"{START}user\ntwo{END}\n{START}assistant\n[f()]{END}\n"
        f"{START}user\n<tool_response>\n{{}}\n</tool_response>{END}\n{START}assistant\n{think}last{END}\n"
    )


def test_system_text_and_tools_share_one_turn(tokenizer):
    function = {"name": "f", "parameters": {"properties": {"a": {}, "b": {}}}}
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "go"}]
    text = tokenizer.apply_chat_template(messages, tools=[{"function": function}], tokenize=False)
    assert text == f"{START}system\nbe short\ntools:\nf(a, b){END}\n{START}user\ngo{END}\n"
    bare = tokenizer.apply_chat_template(messages[1:], tools=[{"name": "g"}], tokenize=False)
    assert bare == f"{START}system\ntools:\ng(){END}\n{START}user\ngo{END}\n"


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="unknown role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


# ---- the configuration ----


def test_transformers_accepts_the_configuration(folder, tokenizer):
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.architectures) == ("qwen3", ["Qwen3ForCausalLM"])
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (1088, 128, 2)
    assert config.head_dim == 32 and config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 1e6
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.mark.slow
def test_the_nano_model_has_about_half_a_million_parameters(folder, built):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert 0.4e6 < model.num_parameters() < 0.55e6


def test_sizes_that_cannot_be_are_refused_in_one_line(tokenizer, tmp_path):
    with pytest.raises(UserError, match="hidden must be a multiple of 64"):
        nano_config(tokenizer, hidden=100)
    with pytest.raises(UserError, match="vocab_size=200 is too small"):
        build_tokenizer(tmp_path, vocab_size=200)
    assert len(build_tokenizer(tmp_path, vocab_size=300)) == 300
