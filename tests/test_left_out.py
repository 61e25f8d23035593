"""What a template leaves out of a turn: the turn is counted with the field's name, and never trained without it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.data import Record, render
from dcore_jax.data.left_out import begins_in_thought, left_out
from qwen_tokenizer import TEMPLATE, byte_tokenizer

GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TEXT_ALONE = TURNS + "{{ m.content }}<|im_end|>\n{% endfor %}" + GENERATION
ONE_CALL = (  # as Llama 3's: the first call, and the content only where there is none
    TURNS
    + "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}{% endif %}"
    "<|im_end|>{% endfor %}" + GENERATION
)
# A thought opened by the generation prompt, as R1's; calls in the notations of several models.
OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
THOUGHT = "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}"
R1 = TURNS + THOUGHT + "{{ m.content }}<|im_end|>{% endfor %}" + OPENED
CALLS = (
    TURNS
    + "{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>{% endfor %}"
    + GENERATION
)
NOTATIONS = {
    "qwen": "<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>",
    "indented": "{{ c.function | tojson(indent=2) }}",
    "sorted": "{{ c.function | tojson(sort_keys=True) }}",
    "ascii": "{{ c.function | tojson(ensure_ascii=True) }}",
    "llama": "{{ {'name': c.function.name, 'parameters': c.function.arguments} | tojson }}",
    "text in JSON": "{{ {'name': c.function.name, 'arguments': c.function.arguments | tojson} | tojson }}",
    "deepseek": "function<sep>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```",
    "xml": "<function={{ c.function.name }}>{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>{% endfor %}</function>",
    "python": "[{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }}, {% endfor %})]",
    "repr": "{{ c.function.name }}: {{ c.function.arguments }}",
}  # fmt: skip

pieces = st.lists(
    st.sampled_from(
        [
            "</think>",
            "<think>",
            "</tool_call>",
            "<tool_call>",
            "{",
            "}",
            "[",
            "]",
            '"',
            "'",
            "\\",
            "\n",
            " ",
            "a",
            "tide",
            "é",
            "0",
        ]
    ),
    max_size=6,
).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1e-7]) | pieces,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(pieces, inner, max_size=2),
    max_leaves=4,
)
arguments_ = st.dictionaries(pieces, values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(["tide", "a", "ls"]), arguments_), max_size=2)


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def turn(content, thought=None, made=()):
    message = {"role": "assistant", "content": content}
    if thought is not None:
        message["reasoning_content"] = thought
    if made:
        message["tool_calls"] = [call(*each) for each in made]
    return message


def taught(message, template):
    """The learned text of a turn behind a question, or the reason why there is none."""
    record = Record(({"role": "user", "content": "q"}, message), None, "c", "x:1")
    tokenizer = byte_tokenizer(template)
    samples, rejected = render(record, tokenizer, max_length=9000)
    assert len(samples) + len(rejected) == 1
    return (
        (tokenizer.decode(samples[0].tokens[samples[0].loss_mask]), None) if samples else (None, rejected[0])
    )


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize(
    ("message", "template", "field"),
    [
        (turn("<think>\nask\n</think>\n\n", made=[("tide", {"h": 1})]), ONE_CALL, "content"),
        (turn("", made=[("tide", {"h": 1}), ("tide", {"h": 2})]), ONE_CALL, "a call of the turn (tool_calls)"),
        (turn("", made=[("tide", {"h": 1})]), TEXT_ALONE, "renders the turn as nothing"),
        (turn("calls tide", made=[("tide", {"h": 1})]), TEXT_ALONE, "a call of the turn (tool_calls)"),
        (turn("4", "two and two"), TEXT_ALONE, "thought (reasoning_content)"),
        (turn("<think>\nexplain\n</think>\n\nWrite </think> at the end."), TEMPLATE, "content"),
        (turn("Write the tag </think> at the end."), TEMPLATE, "makes a thought of the turn's content"),
        (turn("a</think>b"), TEMPLATE, "makes a thought of the turn's content"),
        (turn("End it with </think>"), TEMPLATE, "makes a thought of the turn's content"),
        (turn("Write <think> and </think> tags"), TEMPLATE, "content"),
        (turn('{"name": "tide", "arguments": {"h": 1}}', made=[("tide", {"h": 1})]), TEXT_ALONE, "a call of the turn"),
        (turn("x", '{"name": "tide", "arguments": {"h": 1}}', [("tide", {"h": 1})]), R1, "a call of the turn"),
    ],
)  # fmt: skip
def test_a_turn_that_a_template_cuts_is_counted_by_the_field_that_is_missing(message, template, field):
    text, reason = taught(message, template)
    assert text is None
    assert field in reason


@pytest.mark.parametrize(
    ("message", "template"),
    [
        (turn("<think>\nexplain\n</think>\n\n4"), TEMPLATE),
        (turn("<think>\n\n</think>\n\n4"), TEMPLATE),
        (turn("explain\n</think>\n\n4"), TEMPLATE),  # its opening was written by the template
        (turn("4", "explain"), TEMPLATE),
        (turn("Write </think> at the end.", "explain"), R1),
        (turn("  4\n\n", "  explain\n"), R1),
        (turn("Write the tag </think> at the end."), TEXT_ALONE),
        (turn("", "ask", [("tide", {})]), TEMPLATE),
        (turn("hm", "ask", [("tide", {"h": "</tool_call>"}), ("tide", {"h": "</tool_call>"})]), TEMPLATE),
    ],
)
def test_a_turn_that_a_template_writes_whole_is_learned(message, template):
    text, reason = taught(message, template)
    assert reason is None
    assert text.endswith("<|im_end|>")


@given(pieces, st.none() | pieces, calls)
@settings(max_examples=150, deadline=None)
def test_whatever_a_turn_holds_it_is_learned_or_the_turn_is_counted(content, thought, made):
    message = turn(content, thought, made)
    for template in (TEXT_ALONE, ONE_CALL, TEMPLATE, R1, CALLS.replace("CALL", NOTATIONS["qwen"])):
        text, reason = taught(message, template)
        if reason is not None:
            assert reason and "\n" not in reason
            continue
        rest = squeezed(text)
        for part in (thought or "", content):
            if "think>" not in part:
                assert squeezed(part) in rest
        assert squeezed(content.replace("<think>", "").replace("</think>", "")) in rest.replace(
            "<think>", ""
        ).replace("</think>", "")
        for name, arguments in made:
            assert name in text
            for key in arguments:
                forms = (key, json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1])
                assert any(squeezed(form) in rest for form in forms)


@pytest.mark.parametrize("name", NOTATIONS)
@given(pieces, calls)
@settings(max_examples=60, deadline=None)
def test_calls_are_found_in_every_notation_and_a_missing_one_is_missed(name, content, made):
    whole = CALLS.replace("CALL", NOTATIONS[name])
    record = {"role": "assistant", "content": content, "tool_calls": [call(*each) for each in made]}
    text = byte_tokenizer(whole).apply_chat_template(
        [{"role": "user", "content": "q"}, record], tokenize=False
    )
    text = text.partition("assistant\n")[2].partition("<|im_end|>")[0]
    assert left_out(record, text) is None
    first = byte_tokenizer(whole.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"))
    if len(made) == 2 and made[0][1] and made[1][1] and "tide" not in content + str(made[0]):
        cut = first.apply_chat_template([{"role": "user", "content": "q"}, record], tokenize=False)
        changed = {**record, "tool_calls": [record["tool_calls"][0], call("tide", {"harbour": "Ostend"})]}
        assert "tool_calls" in left_out(changed, cut.partition("assistant\n")[2])


def test_a_content_begins_in_a_thought_where_its_tag_ends_or_begins_a_line():
    assert begins_in_thought("plan\n</think>\n\nanswer")
    assert begins_in_thought("plan</think>\n\nanswer")
    assert not begins_in_thought("write </think> here")
    assert not begins_in_thought("<think>\nplan\n</think>\n\nanswer")
    assert not begins_in_thought("no tag")
