"""Call formats: what each one parses and renders, and its errors."""

import re
from enum import IntEnum

import numpy as np
import pytest

from dcore_jax.calls import (
    CALL_FORMATS,
    Call,
    as_calls,
    calls_equal,
    parse_calls,
    parse_response,
    render_calls,
    split_thought,
    values_equal,
)
from dcore_jax.calls.bounds import MAX_CALLS, MAX_CHARACTERS, MAX_DEPTH, MAX_DIGITS, MAX_VALUES
from dcore_jax.errors import UserError

TWO = (Call("weather.get", {"city": "Oslo", "days": 3}), Call("now", {}))


@pytest.mark.parametrize(
    ("call_format", "written"),
    [
        ("python", '[weather.get(city="Oslo", days=3), now()]'),
        (
            "tags",
            '<tool_call>\n{"name": "weather.get", "parameters": {"city": "Oslo", "days": 3}}\n'
            '{"name": "now", "parameters": {}}\n</tool_call>',
        ),
        (
            "qwen",
            '<tool_call>\n{"name": "weather.get", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        ),
    ],
)
def test_each_format_writes_its_published_form_and_reads_it_back(call_format, written):
    assert render_calls(TWO, call_format) == written
    assert parse_calls(written, call_format) == TWO
    parsed = parse_response(f"<think>\nTwo tools.\n</think>\n\n{written}", call_format)
    assert parsed == ("Two tools.", TWO, "", written, None)


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("f()", {}),
        ("f(a=1,)", {"a": 1}),
        ("f( a = 1 ,\n b = 'two' )", {"a": 1, "b": "two"}),
        (
            "f(a=-1, b=+2, c=1.5, d=.5, e=1e3, f=2.)",
            {"a": -1, "b": 2, "c": 1.5, "d": 0.5, "e": 1000.0, "f": 2.0},
        ),
        ("f(a=True, b=False, c=None)", {"a": True, "b": False, "c": None}),
        ("f(a=[1, [2], {}], b={'k': [True], })", {"a": [1, [2], {}], "b": {"k": [True]}}),
        ("f(a=(1, 2), b=(3,), c=(4), d=())", {"a": [1, 2], "b": [3], "c": 4, "d": []}),
        (r"""f(a="it's", b='say "hi"', c="a\"b\\c")""", {"a": "it's", "b": 'say "hi"', "c": 'a"b\\c'}),
        (r'f(a="\n\t\x41\u00e9\U0001F600\101\d")', {"a": "\n\tA\u00e9\U0001f600A\\d"}),
        ('f(a="""two\nlines, "quoted\\" """)', {"a": 'two\nlines, "quoted" '}),
        ('f(a="one \\\n line")', {"a": "one  line"}),
        ("f(a='[g(x=1)]', b=')')", {"a": "[g(x=1)]", "b": ")"}),
        ('f(start date="x", user-id=1, "a=b"=2)', {"start date": "x", "user-id": 1, "a=b": 2}),
    ],
)
def test_python_arguments_read_as_python_would_read_them(written, arguments):
    (call,) = parse_calls(f"[{written}]", "python")
    assert call.name == "f"
    assert values_equal(call.arguments, arguments), call.arguments
    assert [type(v) for v in call.arguments.values()] == [type(v) for v in arguments.values()]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("math.factorial", "[math.factorial()]"),
        ("Daily Match List-Scheduled", "[Daily Match List-Scheduled()]"),
        ("Wetter für morgen", "[Wetter für morgen()]"),
        ("Stats (v2)", '["Stats (v2)"()]'),
        ("Today's Quiz", '["Today\'s Quiz"()]'),
        (" padded", '[" padded"()]'),
        ("a\nb", '["a\\nb"()]'),
        ("</think>", '["\\x3c/think>"()]'),
    ],
)
def test_a_python_name_is_bare_where_possible_and_quoted_elsewhere(name, written):
    assert render_calls([Call(name)], "python") == written
    assert parse_calls(written, "python") == (Call(name),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "an empty call block"),
        ("[f(1)]", "a positional argument"),
        ('[f("x")]', "a positional argument"),
        ("[f(**{'a': 1})]", "a positional argument"),
        ("[f(g(a=1))]", "a positional argument"),
        ("[f(a=1, a=1)]", "a parameter given twice"),
        ("[f(a={'k': 1, 'k': 2})]", "a key given twice"),
        ("[f(a={1: 2})]", "a key that is not a string"),
        ("[f(a={'k'})]", "a key without a value"),
        ("[f(a=true)]", "a bare word as a value"),
        ("[f(a=g(b=1))]", "a bare word as a value"),
        ("[f(a=__import__('os').system('true'))]", "a bare word as a value"),
        ("[f(a=f'{x}')]", "a bare word as a value"),
        ("[f(a=1+1)]", "arguments not separated by commas"),
        ("[f(a='x' 'y')]", "arguments not separated by commas"),
        ("[f(a=[1 2])]", "items not separated by commas"),
        ("[f(a=)]", "no value"),
        ("[f(a='x)]", "a string without its closing quote"),
        ("[f(a='x\ny')]", "a string without its closing quote"),
        (r"[f(a='\x4')]", "an escape that cannot be read"),
        (r"[f(a='\U00110000')]", "an escape that cannot be read"),
        (r"[f(a='\N{BULLET}')]", "an escape that cannot be read"),
        (r"[f(a='\ud800')]", "text with a lone surrogate"),
        ("[f(a=007)]", "a number with leading zeros"),
        ("[f(a=1e999)]", "a number that is not finite"),
        (f"[f(a={'9' * 5000})]", "a number with too many digits"),
        ("[f() g()]", "calls not separated by commas"),
        ("[f()] and [g()]", "text after the calls"),
        ("[see note]", "a tool name without arguments"),
        ("[(a=1)]", "no tool name"),
        ('[""()]', "no tool name"),
        ("[f(a=1]", "arguments not separated by commas"),
        (f"[f(a={'[' * 50}{']' * 50})]", "nested too deep"),
        (f"[f(a=[{'0,' * MAX_VALUES}])]", "too many values"),
        (f"[{'f(),' * (MAX_CALLS + 1)}]", "too many calls"),
        (f"[f(a='{'x' * MAX_CHARACTERS}')]", "too long"),
    ],
)
def test_python_calls_that_break_the_grammar_are_refused_with_their_reason(content, reason):
    parsed = parse_response(f"<think>\nx\n</think>\n\n{content}", "python")
    assert (parsed.calls, parsed.error, parsed.call_text, parsed.reply) == (None, reason, content, "")


def _object(arguments_key, arguments):
    return f'{{"name": "f", "{arguments_key}": {arguments}}}'


@pytest.mark.parametrize(("call_format", "key"), [("tags", "parameters"), ("qwen", "arguments")])
@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("", "an empty call block"),
        ("{'name': 'f'}", "not JSON"),
        ('{"name": "f", ', "not JSON"),
        ("[1]", "a call that is not a JSON object"),
        ("KEY", "a call that is not a JSON object"),
        ('{"KEY": {}}', "no tool name"),
        ('{"name": "", "KEY": {}}', "no tool name"),
        ('{"name": 3, "KEY": {}}', "no tool name"),
        ('{"name": "f"}', 'no "KEY"'),
        ('{"name": "f", "input": {}}', 'no "KEY"'),
        ('{"name": "f", "KEY": "x"}', '"KEY" that is not an object'),
        ('{"name": "f", "KEY": {"a": 1, "a": 2}}', "a key given twice"),
        ('{"name": "f", "KEY": {"a": NaN}}', "a number that is not finite"),
        ('{"name": "f", "KEY": {"a": 1e999}}', "a number that is not finite"),
        (f'{{"name": "f", "KEY": {{"a": {"9" * 5000}}}}}', "a number with too many digits"),
        ('{"name": "f", "KEY": {"a": "\\ud800"}}', "text with a lone surrogate"),
        (f'{{"name": "f", "KEY": {{"a": {"[" * 50}{"]" * 50}}}}}', "nested too deep"),
        (f'{{"name": "f", "KEY": {{"a": {"[" * 20_000}', "nested too deep"),
        (f'{{"name": "f", "KEY": {{"a": [{"0," * MAX_VALUES}0]}}}}', "too many values"),
        (f'{{"name": "f", "KEY": {{"a": "{"x" * MAX_CHARACTERS}"}}}}', "too long"),
    ],
)
def test_json_calls_that_break_the_format_are_refused_with_their_reason(call_format, key, inside, reason):
    inside = inside.replace("KEY", '"text"' if inside == "KEY" else key)
    parsed = parse_response(f"<think> x </think>\n<tool_call>\n{inside}\n</tool_call>", call_format)
    assert (parsed.calls, parsed.error) == (None, reason.replace("KEY", key))
    assert parsed.call_text


def test_a_qwen_block_may_spread_its_object_over_lines_and_a_tags_block_may_not():
    spread = '<tool_call>\n{"name": "f",\n "%s": {"a": 1}}\n</tool_call>'
    assert parse_response(spread % "arguments", "qwen").calls == (Call("f", {"a": 1}),)
    assert parse_response(spread % "parameters", "tags").error == "not JSON"


def test_blank_lines_and_unknown_fields_are_ignored():
    text = '<tool_call>\n\n{"id": 7, "name": "f", "parameters": {}}\n \n</tool_call>'
    assert parse_response(text, "tags").calls == (Call("f"),)


@pytest.mark.parametrize(
    ("text", "call_format", "expected"),
    [
        ("Hello.", "python", (None, (), "Hello.", "", None)),
        ("", "qwen", (None, (), "", "", None)),
        ("<think>\nhm\n</think>\n\nNo tool fits.", "python", ("hm", (), "No tool fits.", "", None)),
        # The opening tag may have been part of the prompt.
        ("hm\n</think>\n\n[f()]", "python", ("hm", (Call("f"),), "", "[f()]", None)),
        # The last closing tag ends the thought: a thought may speak of it, or of calls.
        ("<think>a </think> [g()] b</think>[f()]", "python", ("a </think> [g()] b", (Call("f"),), "", "[f()]", None)),
        ("<think>still thinking, [f()]", "python", ("still thinking, [f()]", None, "", "", "a thought that is not closed")),
        ("<think>x</think>[f(a=1", "python", ("x", None, "", "[f(a=1", "cut off")),
        ("<think> x </think>\n<response> Done. </response>", "tags", ("x", (), "Done.", "", None)),
        ("<think><tool_call> maybe</think>\n<response> Done. </response>", "tags", ("<tool_call> maybe", (), "Done.", "", None)),
        ("<think>x</think><tool_call>{", "tags", ("x", None, "", "<tool_call>{", "a call block that is not closed")),
    ],
)  # fmt: skip
def test_a_response_splits_into_thought_calls_and_reply(text, call_format, expected):
    assert parse_response(text, call_format) == expected


def test_a_reply_may_come_with_json_calls():
    block = '<tool_call>\n{"name": "f", "%s": {}}\n</tool_call>'
    tags = parse_response(f"<think>x</think>\n{block % 'parameters'}\n<response> Hi. </response>", "tags")
    qwen = parse_response(f"<think>x</think>\n\nHi.\n{block % 'arguments'}", "qwen")
    assert (tags.calls, tags.reply) == (qwen.calls, qwen.reply) == ((Call("f"),), "Hi.")


def test_bytes_are_read_as_utf8_and_broken_ones_do_not_raise():
    assert parse_response('[f(a="é")]'.encode(), "python").calls == (Call("f", {"a": "é"}),)
    assert parse_response(b"\xff\xfe No.", "python").calls == ()
    assert parse_response(b"\xff\xfe[f()]", "python").error == "calls in another notation"


def test_split_thought_returns_the_answer_unchanged():
    assert split_thought("<think>\na\n</think>\n\n b ") == ("a", "\n\n b ", True)
    assert split_thought(" b ") == (None, " b ", True)
    assert split_thought("<think>a") == ("a", "", False)


def test_parse_calls_refuses_anything_but_calls():
    for call_format in CALL_FORMATS:
        assert parse_calls(render_calls([], call_format), call_format) == ()
        with pytest.raises(UserError, match="text that is not a call"):
            parse_calls("Hello.", call_format)
    with pytest.raises(UserError, match=re.escape("a bare word as a value (at character 9)")):
        parse_calls("[f(a=true)]", "python")
    with pytest.raises(UserError, match="call format 'xml' is unknown; choose one of python, tags, qwen"):
        parse_calls("[]", "xml")


@pytest.mark.parametrize("call_format", CALL_FORMATS)
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(""), "no tool name"),
        (Call("f", {"a": float("nan")}), "not finite"),
        (Call("f", {"a": float("inf")}), "not finite"),
        (Call("f", {"a": 10**500}), "too many digits"),
        (Call("f", {"a": {1, 2}}), "JSON cannot hold"),
        (Call("f", {"a": {1: 2}}), "not a string"),
        (Call("f", {"a": "\ud800"}), "lone surrogate"),
        (Call("\ud800"), "lone surrogate"),
        (Call("f", {"a": [0] * MAX_VALUES}), "too many values"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(call_format, call, reason):
    with pytest.raises(UserError, match=rf"call 1 .*{reason}") as caught:
        render_calls([Call("fine"), call], call_format)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call_format", CALL_FORMATS)
def test_the_deepest_value_that_can_be_written_can_be_read(call_format):
    value = 0
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    call = Call("f", {"a": value})
    assert parse_calls(render_calls([call], call_format), call_format) == (call,)
    with pytest.raises(UserError, match="nested too deep"):
        render_calls([Call("f", {"a": [[value]]})], call_format)


def bounded(kind, size):
    """A value of that many containers inside one another, values in all, or digits."""
    if kind == "depth":
        return [bounded(kind, size - 1)] if size else 1
    return [0] * (size - 1) if kind == "values" else 10**size - 1


@pytest.mark.parametrize("call_format", CALL_FORMATS)
@pytest.mark.parametrize(
    ("kind", "largest", "reason"),
    [
        ("depth", MAX_DEPTH, "nested too deep"),
        ("values", MAX_VALUES, "too many values"),
        ("digits", MAX_DIGITS, "too many digits"),
        ("negative digits", MAX_DIGITS, "too many digits"),
    ],
)
def test_every_format_reads_and_writes_up_to_the_same_bound(call_format, kind, largest, reason):
    sign = -1 if kind.startswith("negative") else 1
    fits, exceeds = (sign * bounded(kind.split()[-1], size) for size in (largest, largest + 1))
    call = Call("f", {"a": fits})
    assert parse_calls(render_calls([call], call_format), call_format) == (call,)
    with pytest.raises(UserError, match=reason):
        render_calls([Call("f", {"a": exceeds})], call_format)
    written = render_calls([Call("f", {"a": "VALUE"})], call_format).replace('"VALUE"', str(exceeds))
    with pytest.raises(UserError, match=reason):
        parse_calls(written, call_format)


class Level(IntEnum):
    HIGH = 2


@pytest.mark.parametrize("call_format", CALL_FORMATS)
def test_number_subclasses_are_written_as_plain_numbers(call_format):
    call = Call("f", {"a": np.float64(1.5), "b": [np.float64(-1e300)], "c": Level.HIGH, "d": True})
    (read,) = parse_calls(render_calls([call], call_format), call_format)
    assert read.arguments == {"a": 1.5, "b": [-1e300], "c": 2, "d": True}
    assert [type(value) for value in read.arguments.values()] == [float, list, int, bool]


def test_values_are_compared_by_type_and_size():
    same = [
        (1, 1.0),
        (0.5, 0.5),
        ("a", "a"),
        (True, True),
        (None, None),
        ([1, {"k": 2}], [1.0, {"k": 2.0}]),
        ({}, {}),
    ]
    other = [
        (1, True),
        (0, False),
        (1, "1"),
        (1.0, "1.0"),
        (None, False),
        (None, ""),
        ([], {}),
        ([1, 2], [2, 1]),
    ]
    other += [({"a": 1}, {"a": 1, "b": 2}), ({"a": 1}, {"b": 1}), ([True], [1]), ("a", "A"), ("", [])]
    assert all(values_equal(a, b) and values_equal(b, a) for a, b in same)
    assert not any(values_equal(a, b) or values_equal(b, a) for a, b in other)


def test_calls_compare_in_order_or_as_a_bag():
    a, b, c = Call("f", {"x": 1}), Call("f", {"x": 1.0}), Call("g", {"x": True})
    assert calls_equal([a, c], [b, c])
    assert not calls_equal([a, c], [c, a])
    assert calls_equal([a, c, b], [c, b, a], ordered=False)
    assert not calls_equal([a, a, c], [a, c, c], ordered=False)
    assert not calls_equal([c], [Call("g", {"x": 1})], ordered=False)
    assert not calls_equal([a], [a, a], ordered=False)


def test_reference_calls_are_checked_item_by_item():
    assert as_calls([{"name": "f", "arguments": {"a": 1}}, Call("g")]) == (Call("f", {"a": 1}), Call("g"))
    for wrong, field in [
        ({"arguments": {}}, '"name"'),
        ({"name": "", "arguments": {}}, '"name"'),
        ({"name": "f", "parameters": {}}, '"arguments"'),
        ({"name": "f", "arguments": [1]}, '"arguments"'),
        ({"name": "f", "arguments": {1: 2}}, '"arguments"'),
        ("f()", '"name"'),
    ]:
        with pytest.raises(UserError, match=f"reference call 1.*{field}"):
            as_calls([Call("g"), wrong])
