"""Calls in any notation are read, or counted as unreadable; never taken for an answer without calls."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.calls import CALL_FORMATS, Call, calls_equal, parse_any_response, parse_response, render_calls

AWKWARD = [
    "</think>",
    "</tool_call>",
    "<tool_call>",
    "<think>",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    '"',
    "'",
    "\\",
    "\n",
    "<",
    "\ud800",
]
texts = st.lists(st.sampled_from([*AWKWARD, "x", " ", "=", ",", ":", "é"]), min_size=1, max_size=6).map(
    "".join
)
values = st.recursive(
    st.one_of(texts, st.integers(-5, 5), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=3,
)
calls = st.lists(
    st.builds(
        Call,
        st.one_of(st.just("write"), texts),
        st.dictionaries(st.one_of(st.just("text"), texts), values, max_size=2),
    ),
    min_size=1,
    max_size=2,
)


def written_by_a_stranger(these, notation):
    """The calls as another program writes them: plain json.dumps or repr, no tag in a string escaped."""

    def listed(call, key):
        return json.dumps({"name": call.name, key: call.arguments}, ensure_ascii=False)

    if notation == "qwen":
        return "\n".join(f"<tool_call>\n{listed(call, 'arguments')}\n</tool_call>" for call in these)
    if notation == "tags":
        return "\n".join(["<tool_call>", *(listed(call, "parameters") for call in these), "</tool_call>"])
    if notation == "json":
        return f"[{', '.join(listed(call, 'arguments') for call in these)}]"

    def name(text):
        return text if re.fullmatch(r"\w+", text) else repr(text)

    def called(call):
        return f"{name(call.name)}({', '.join(f'{name(k)}={v!r}' for k, v in call.arguments.items())})"

    return f"[{', '.join(map(called, these))}]"


@settings(max_examples=400, deadline=None)
@given(calls, st.sampled_from(CALL_FORMATS), st.sampled_from(["<think>\nw\n</think>\n\n", "w</think>\n", ""]))
def test_a_call_with_awkward_text_anywhere_is_read_back_or_counted(these, notation, thought):
    text = thought + written_by_a_stranger(these, notation)
    for parsed in (parse_response(text, notation), parse_any_response(text)[0]):
        if parsed.calls is None:
            assert parsed.error
        else:
            assert calls_equal(parsed.calls, these)
            assert (parsed.thought or "") == thought.removeprefix("<think>").partition("</think>")[0].strip()


@settings(max_examples=300, deadline=None)
@given(calls, st.sampled_from(CALL_FORMATS), st.sampled_from(CALL_FORMATS))
def test_calls_in_another_notation_are_never_an_answer_without_calls(these, notation, asked):
    text = "<think>\nw\n</think>\n\n" + written_by_a_stranger(these, notation)
    parsed = parse_response(text, asked)
    assert parsed.error if parsed.calls is None else calls_equal(parsed.calls, these)


@settings(max_examples=200, deadline=None)
@given(calls, st.sampled_from(CALL_FORMATS), st.integers(1, 60))
def test_a_call_that_is_cut_off_is_never_an_answer_without_calls(these, notation, kept):
    written = written_by_a_stranger([Call("write", call.arguments) for call in these], notation)
    text = written[: max(len(written) - kept, 24)]
    parsed = parse_response("<think>\nw\n</think>\n\n" + text, notation)
    assert parsed.calls is None or parsed.calls


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(Call, st.just("f"), st.dictionaries(st.just("a"), st.text(max_size=5), max_size=1)),
        min_size=1,
        max_size=3,
    )
)
def test_every_notation_is_found_from_its_text(these):
    for notation in CALL_FORMATS:
        try:
            text = render_calls(these, notation)
        except ValueError:  # a lone surrogate
            continue
        parsed, found = parse_any_response(f"<think>\nw\n</think>\n\n{text}")
        assert found == notation and calls_equal(parsed.calls, these)


@pytest.mark.parametrize(
    ("text", "names", "notation"),
    [
        ('<tool_call>\n{"arguments": {"harbour": "Ostend"}, "name": "tide"}\n</tool_call>', (), "qwen"),
        ("<tool_call>\n{'arguments': {'harbour': 'Ostend'}, 'name': 'tide'}\n</tool_call>", (), None),
        ('<tool_call>[{"name": "tide", "arguments": {"harbour": "Ostend"}}]</tool_call>', (), None),
        ('<tool_call>{"name": "tide", "arguments": "{\\"harbour\\": \\"Ostend\\"}"}</tool_call>', (), None),
        ('{"name": "tide", "parameters": {"harbour": "Ostend"}}', (), "json"),
        ('<|python_tag|>{"name": "tide", "parameters": {"harbour": "Ostend"}}', (), "json"),
        ('[TOOL_CALLS] [{"name": "tide", "arguments": {"harbour": "Ostend"}}]', (), "json"),
        ('<functioncall> {"name": "tide", "arguments": \'{"harbour": "Ostend"}\'} <|endoftext|>', (), None),
        ('<functioncall> {"name": "tide", "arguments": {"harbour": "Ostend"}}', (), None),
        ('[tide(harbour="Ostend")]', (), "python"),
        ('I shall look. [tide(harbour="Ostend")]', (), "python"),
        ('I shall look. [tide(harbour="Ostend")] One moment.', ("tide",), "python"),
    ],
)
def test_what_strangers_write_is_read(text, names, notation):
    parsed, found = parse_any_response(text, names)
    assert parsed.calls == (Call("tide", {"harbour": "Ostend"}),) and found == notation


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=tide>\n<parameter=harbour>\nOstend\n</parameter>\n</function>\n</tool_call>",
        '<function=tide>{"harbour": "Ostend"}</function>',
        'Thought: look\nAction: tide\nAction Input: {"harbour": "Ostend"}',
        '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Ost',
        '[tide(harbour="Ost',
        '[tide("Ostend")]',
        '{"name": "tide", "parameters": {"harbour": ',
        '<tool_call>{"name": "tide", "arguments": {"at": NaN}}</tool_call>',
    ],
)
def test_what_cannot_be_read_is_counted(text):
    parsed, notation = parse_any_response(text)
    assert parsed.calls is None and parsed.error and notation is None
    for asked in CALL_FORMATS:
        assert parse_response(text, asked).calls is None


@pytest.mark.parametrize(
    "text",
    [
        "See [1] and [the page](https://example.org).",
        "Call `tide(harbour)` when you are at sea.",
        "The tag <tool_call> opens a block.",
        '{"answer": 72}',
        "[Note (important)] bring a coat.",
        "Options: [a], [b (c)].",
        "",
    ],
)
def test_words_are_words(text):
    assert parse_any_response(text)[0].calls == ()
    assert parse_response(text, "python").calls == ()
