"""The one place where a chat template is run: what reaches it, and what a run decides about it."""

import dataclasses
import datetime
import json
import re

import pytest
import transformers.utils.chat_template_utils as transformers_templates

from dcore_jax import UserError
from dcore_jax.config import config_from_dict
from dcore_jax.data import Malformed, Rejections
from dcore_jax.data.chat_template import chat_template, render_chat
from dcore_jax.data.store import load_samples
from dcore_jax.distill.config import DistillConfig
from dcore_jax.distill.served_models import open_model
from dcore_jax.mesh import make_mesh
from dcore_jax.metrics import read_metrics
from dcore_jax.nano import NanoConfig, embedded_model
from dcore_jax.rl import RLConfig
from dcore_jax.rl.prompts import Question, render_prompts
from dcore_jax.sft import PackingConfig, SFTConfig, train
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig
from dcore_jax.training.run_folder import RunRecord, record_run, run_began, run_record
from qwen_tokenizer import TEMPLATE, byte_tokenizer

USER = {"role": "user", "content": "q"}
CALL = {"type": "function", "function": {"name": "ls", "arguments": {}}}
SHOW = (
    "{% for m in messages %}{{ m.role }}:"
    "{% if m.content is not defined %}absent{% elif m.content is none %}null{% else %}[{{ m.content }}]{% endif %}"
    "{% if 'tool_calls' in m %} calls={{ m.tool_calls is none }}{% endif %};{% endfor %}"
    " tools={% if tools is none %}null{% else %}{{ tools | length }}{% endif %}"
)
THINKING = (
    TEMPLATE + "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
DATED = '{{ strftime_now("%d %b %Y %H:%M") }}' + TEMPLATE
NOON = datetime.datetime(2026, 11, 24, 12, 30)


def show(message, tools=None):
    return render_chat(byte_tokenizer(SHOW), [message], tools)


# --- what reaches the template ---


def test_what_a_template_tells_apart_reaches_it_as_it_was():
    said = {"role": "assistant"}
    assert show(said) == "assistant:absent; tools=null"
    assert show({**said, "content": None}) == "assistant:null; tools=null"
    assert show({**said, "content": ""}, []) == "assistant:[]; tools=0"
    assert show({**said, "content": "x", "tool_calls": None}) == "assistant:[x] calls=True; tools=null"
    assert show({**said, "content": "x", "tool_calls": []}, [CALL]) == "assistant:[x] calls=False; tools=1"


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}<{{ m.role }}>{% endfor %}",  # writes None for null
        "{% for m in messages %}{{ m.content }}{{ m.content }}<{{ m.role }}>{% endfor %}",
        "{% for m in messages %}{{ m.content.strip() }}<{{ m.role }}>{% endfor %}",  # fails on it
    ],
)
def test_a_template_that_cannot_take_null_is_given_an_empty_text(template, content):
    messages = [
        {"role": "user", "content": "None"},
        {"role": "assistant", **content},
        {"role": "user", "content": "No"},
    ]
    text = render_chat(byte_tokenizer(template), messages)
    assert text.endswith("<user><assistant>" + ("NoNo" if "}}{{ m.content" in template else "No") + "<user>")
    assert text.startswith("None")


def test_a_failure_is_that_of_the_conversation_as_it_is():
    failing = "{{ raise_exception('no ' + messages[0].role) }}"
    with pytest.raises(Malformed, match=r"^chat template failed: no assistant$"):
        render_chat(byte_tokenizer(failing), [{"role": "assistant", "content": None}])


def test_the_text_is_that_of_apply_chat_template_where_no_field_is_null():
    tokenizer = byte_tokenizer(TEMPLATE)
    messages = [USER, {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": [CALL]}]
    for opened in (False, True):
        theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False)
        assert render_chat(tokenizer, messages, add_generation_prompt=opened) == theirs


# --- options ---


def test_options_of_the_template_are_read_as_yaml():
    off = chat_template(byte_tokenizer(THINKING), ["enable_thinking=false"])
    assert render_chat(off, [USER], add_generation_prompt=True).endswith("assistant\n<think>\n\n</think>\n\n")
    for options in ([], ["enable_thinking=true"]):
        template = chat_template(byte_tokenizer(THINKING), options)
        assert render_chat(template, [USER], add_generation_prompt=True).endswith("assistant\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["thinking=false"], "chat_template_kwargs: the chat template has no variable thinking; it reads enable_thinking"),
        (["messages=[]"], "chat_template_kwargs: the chat template has no variable messages"),
        (["enable_thinking"], "chat_template_kwargs: 'enable_thinking' should be key=value, as enable_thinking=false"),
        (["enable_thinking=1", "enable_thinking=2"], "chat_template_kwargs: enable_thinking is given twice; keep one"),
        (["enable_thinking=["], "chat_template_kwargs: 'enable_thinking=[' is not readable"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_told_in_one_line(options, message):
    with pytest.raises(UserError, match="^" + re.escape(message)) as error:
        chat_template(byte_tokenizer(THINKING), options)
    assert "\n" not in str(error.value)


def test_all_recipes_take_options_and_refuse_malformed_ones_before_anything_is_read():
    for kind in (SFTConfig, RLConfig, DistillConfig):
        config = config_from_dict(kind, {"chat_template_kwargs": ["enable_thinking=false"]})
        assert config.chat_template_kwargs == ("enable_thinking=false",)
        with pytest.raises(UserError, match="should be key=value"):
            kind(chat_template_kwargs=("enable_thinking",))
    with pytest.raises(UserError, match="change nothing under loss_mask=release"):
        SFTConfig(chat_template_kwargs=("a=1",), loss_mask="release")


def test_prompts_of_rl_are_rendered_with_the_runs_options():
    question = Question((USER,), None, (), None, "c", "x:1")
    template = chat_template(byte_tokenizer(THINKING), ["enable_thinking=false"])
    (prompt,) = render_prompts([question], template, max_length=99, rejections=Rejections())
    assert prompt.text.endswith("</think>\n\n")


def test_a_sample_is_rendered_with_the_runs_options(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": [USER, {"role": "assistant", "content": "a"}]}) + "\n")
    template = chat_template(byte_tokenizer(THINKING), ["enable_thinking=false"])
    store, _ = load_samples(path, template, max_length=99)
    sample = store[0]
    assert template.tokenizer.decode(sample.tokens[sample.loss_mask]) == "a<|im_end|>"


def test_the_models_of_a_distillation_have_the_runs_options(tmp_path, monkeypatch):
    monkeypatch.setattr("dcore_jax.distill.served_models._engines", lambda *_: ())
    folder = embedded_model(tmp_path, NanoConfig(hidden=64, layers=1), 0)
    with pytest.raises(
        UserError, match=r"the chat template of .* has no variable enable_thinking; it reads \w"
    ):
        open_model(str(folder), DistillConfig(chat_template_kwargs=("enable_thinking=false",)), tmp_path)
    assert open_model(str(folder), DistillConfig(), tmp_path, NOON).template.began == NOON


# --- the date ---


def test_a_template_that_writes_the_date_is_given_the_runs():
    dated = chat_template(byte_tokenizer(DATED), began=NOON)
    assert render_chat(dated, [USER]).startswith("24 Nov 2026 12:30<|im_start|>")
    # As Llama 3.2's: the date of the run; as 3.1's: the template's own, as in serving; with neither, the run's.
    own = "{% if date_string is not defined %}{% set date_string = DATE %}{% endif %}{{ date_string }}"
    for template, date in (
        (own.replace("DATE", "strftime_now('%d %b %Y')"), "24 Nov 2026"),
        (own.replace("DATE", "'26 Jul 2024'"), "26 Jul 2024"),
        ("{{ date_string }}", "24 Nov 2026"),
    ):
        assert render_chat(chat_template(byte_tokenizer(template), began=NOON), [USER]) == date
        chosen = chat_template(byte_tokenizer(template), ["date_string=1 May 2025"], NOON)
        assert render_chat(chosen, [USER]) == "1 May 2025"


def test_a_run_began_when_it_was_first_recorded(tmp_path):
    now = datetime.datetime.now()
    assert 0 <= (run_began(tmp_path) - now.replace(microsecond=0)).total_seconds() < 60
    record_run(SFTConfig(), tmp_path, RunRecord("sft", "m", began=NOON.isoformat()))
    assert run_began(tmp_path) == NOON
    record_run(SFTConfig(), tmp_path, RunRecord("sft", "m", began="yesterday"))
    with pytest.raises(UserError, match=r"run.json: began is 'yesterday'; write a date and time"):
        run_began(tmp_path)


def test_a_run_that_goes_on_after_midnight_equals_one_that_was_not_stopped(tmp_path, monkeypatch):
    """The clock is moved where transformers and the run folder read it."""

    def on(day):
        moved = type("Moved", (datetime.datetime,), {"now": classmethod(lambda *_: NOON.replace(day=day))})
        monkeypatch.setattr(transformers_templates, "datetime", moved)
        monkeypatch.setattr("dcore_jax.training.run_folder.datetime", moved)

    folder = embedded_model(tmp_path, NanoConfig(hidden=64, layers=1), 0)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text('{{ strftime_now("%d %b %Y") }}' + template)
    data = tmp_path / "d.jsonl"
    rows = [{"messages": [USER, {"role": "assistant", "content": answer}]} for answer in "abcdef"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SFTConfig(
        model=str(folder), data=(str(data),), mesh="1", rows=2, steps=4, packing=PackingConfig(length=48),
        compute=ComputeConfig(dtype="float32", remat="none"), checkpoint=CheckpointConfig(every=2),
        optimizer=OptimizerConfig(schedule="constant", warmup=0.0),
    )  # fmt: skip
    make_mesh("1")
    on(24)
    train(dataclasses.replace(config, output=str(tmp_path / "whole")))
    stopped = dataclasses.replace(config, output=str(tmp_path / "stopped"))
    train(dataclasses.replace(stopped, steps=2))
    on(25)
    train(stopped)
    assert run_record(tmp_path / "stopped").began == NOON.isoformat()
    whole, again = (
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "stopped")
    )
    assert len(whole) == 4
    assert again == whole
