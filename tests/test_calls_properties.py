"""Call formats under random and hostile texts: the round trip is the identity, nothing raises, nothing is slow."""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.calls import CALL_FORMATS, Call, calls_equal, parse_calls, parse_response, render_calls
from dcore_jax.rewards import PRESETS, reward_range, tool_reward

DATA = Path(__file__).parents[1].parent / "shared" / "data"
KB64 = 65_536
SECONDS = 0.050

tricky = st.sampled_from(
    ["</think>", "<tool_call>", "</tool_call>", "<response>", '"]', "\\", "\\n", "'", "\x00", "()"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | tricky
)
values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4) | tricky, v, max_size=3),
    max_leaves=6,
)
names = (
    st.text(min_size=1, max_size=8) | tricky | st.sampled_from(["Daily Match List-Scheduled", "a.b", "v (2)"])
)
some_calls = st.lists(
    st.builds(Call, names, st.dictionaries(names | st.just(""), values, max_size=3)), max_size=3
)

fragments = st.sampled_from(
    ["<think>", "\n</think>\n\n", "<tool_call>", "</tool_call>", "<response>", "</response>", "[", "]", "(", ")", "{", "}"]
    + ["f", "f(", "f(a=", "f(a=1),", ",", "=", ":", '"', "'", '"""', "\\", "\\u", "\\x41", "0", "9", "-", ".", "e", "\n", " "]
    + ['"a":', '{"name": "f", "parameters": {"a": ', '{"name": "f", "arguments": {}}\n', "True", "null", "NaN", "\x00", "é"]
)  # fmt: skip
openings = {
    "python": "[f(a=",
    "tags": '<tool_call>\n{"name": "f", "parameters": {"a": ',
    "qwen": "<tool_call>\n",
    "json": '[{"name": "f", "arguments": {"a": ',
}
closings = {"python": "]", "tags": "\n</tool_call>", "qwen": "\n</tool_call>", "json": "]"}


def seconds_to_score(text, call_format):
    """CPU time of the fastest of five runs of parser and reward: the machine may be busy with other things."""
    reference = [Call("f", {"a": 1}), Call("f", {"b": [2]})]
    times = []
    for _ in range(5):
        start = time.process_time()
        tool_reward(text, reference, call_format=call_format)
        times.append(time.process_time() - start)
        if times[-1] < SECONDS / 2:
            break
    return min(times)


@pytest.fixture(scope="module")
def measure():
    """`seconds_to_score` in a process of its own, free of the type checks that the tests' import hook adds."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda text, call_format: pool.submit(seconds_to_score, text, call_format).result()


@settings(max_examples=120, deadline=None)
@given(some_calls, st.sampled_from(CALL_FORMATS))
def test_rendering_then_parsing_is_the_identity(calls, call_format):
    written = render_calls(calls, call_format)
    read = parse_calls(written, call_format)
    assert read == tuple(calls)
    assert calls_equal(read, calls)  # == lets True pass for 1
    if calls:
        parsed = parse_response(f"<think>\nwhy\n</think>\n\n{written}", call_format)
        assert parsed == ("why", tuple(calls), "", written, None)


@settings(max_examples=150, deadline=None)
@given(
    st.text() | st.binary() | st.lists(fragments, max_size=30).map("".join),
    st.sampled_from(CALL_FORMATS),
    st.sampled_from(PRESETS),
    some_calls,
    st.floats(0, 1),
)
def test_no_text_makes_a_reward_raise_or_leave_its_range(text, call_format, preset, reference, progress):
    reward = tool_reward(text, reference, preset=preset, call_format=call_format, progress=progress)
    low, high = reward_range(preset, expects_calls=bool(reference), progress=progress)
    assert low - 1e-9 <= reward.total <= high + 1e-9
    assert reward.total == sum(reward.parts.values())
    assert (reward.error is None) == (parse_response(text, call_format).calls is not None)


@settings(max_examples=25, deadline=None)
@given(st.lists(fragments, min_size=1, max_size=4).map("".join), st.booleans(), st.sampled_from(CALL_FORMATS))
def test_any_fragment_repeated_to_64_kb_is_scored_within_50_ms(measure, fragment, inside_a_call, call_format):
    start, end = (openings[call_format], closings[call_format]) if inside_a_call else ("", "")
    text = (start + fragment * KB64)[: KB64 - len(end)] + end
    assert measure(text, call_format) < SECONDS


HOSTILE = {
    "brackets": "[" * KB64,
    "nested calls": "f(a=" * KB64,
    "nested lists": "f(a=" + "[" * KB64,
    "nested tuples": "f(a=" + "(" * KB64,
    "nested mappings": "f(a=" + "{'a':" * KB64,
    "list of zeros": "f(a=[" + "0," * KB64,
    "list of strings": "f(a=[" + '"",' * KB64,
    "mapping of many keys": "f(a={" + ",".join(f"'{i}':0" for i in range(9000)),
    "many parameters": "f(" + ",".join(f"a{i}=1" for i in range(9000)),
    "many calls": "f()," * KB64,
    "open string": 'f(a="' + "a" * KB64,
    "backslashes": 'f(a="' + "\\" * KB64,
    "escapes": 'f(a="' + "\\x41" * (KB64 // 4 - 4) + '"',
    "triple quotes": 'f(a="""' + '""\\' * KB64,
    "quotes": '"' * KB64,
    "digits": "f(a=" + "9" * KB64,
    "exponents": "f(a=[" + "1e1," * KB64,
    "signs": "f(a=" + "-" * KB64,
    "spaces": " " * KB64,
    "spaces in a name": "a " * KB64,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_python_calls_of_64_kb_are_refused_within_50_ms(measure, body):
    text = ("[" + body)[: KB64 - 1] + "]"
    assert parse_response(text, "python").error
    assert measure(text, "python") < SECONDS


@pytest.mark.parametrize("call_format", ["tags", "qwen"])
@pytest.mark.parametrize(
    "body",
    [
        '{"name":"f","KEY":{"a":' + "[" * KB64,
        '{"name":"f","KEY":' + '{"a":' * KB64,
        '{"name":"f","KEY":{"a":[' + "0," * KB64,
        '{"name":"f","KEY":{"a":[' + "{}," * (KB64 // 3 - 40) + "{}]}}",
        '{"name":"f","KEY":{' + ",".join(f'"{i}":0' for i in range(7000)) + "}}",
        '{"name":"f","KEY":{"a":' + "9" * KB64,
        '{"name":"f","KEY":{"a":"' + "\\" * KB64,
        "{}\n" * KB64,
        "\n" * KB64,
        "<tool_call>" * KB64,
        "</tool_call>" * KB64,
        "</tool_call><tool_call>" * KB64,
    ],
    ids=lambda body: body[:30].replace("\n", " "),
)
def test_hostile_json_calls_of_64_kb_are_refused_within_50_ms(measure, body, call_format):
    body = body.replace("KEY", "parameters" if call_format == "tags" else "arguments")
    text = ("<tool_call>\n" + body)[: KB64 - 20] + "\n</tool_call>"
    assert parse_response(text, call_format).error
    assert measure(text, call_format) < SECONDS


def test_a_text_far_beyond_the_bounds_still_takes_linear_time(measure):
    """4 MB, 64 times the length, in less than 64 times the time."""
    for body in ("</think>\n<tool_call>", "<response>", "[f(a=1)]", "<tool_call></tool_call>"):
        for call_format in CALL_FORMATS:
            assert measure("<think>" + body * (64 * KB64 // len(body)), call_format) < 64 * SECONDS


@pytest.fixture(scope="module")
def rlla():
    path = DATA / "toolrl" / "rlla_sft.json"
    if not path.exists():
        pytest.skip("the real data is not here")
    return json.loads(path.read_text())


def test_all_real_rlla_outputs_parse_and_round_trip_through_every_format(rlla):
    parsed = [parse_response(record["output"], "tags") for record in rlla]
    assert [p.error for p in parsed] == [None] * 400
    assert sum(bool(p.calls) for p in parsed) == 346
    assert sum(bool(p.reply) for p in parsed) == 54
    names = {call.name for p in parsed for call in p.calls}
    assert any(" " in name for name in names)
    for p in parsed:
        for call_format in CALL_FORMATS:
            assert calls_equal(parse_calls(render_calls(p.calls, call_format), call_format), p.calls)


@pytest.mark.parametrize(
    ("preset", "progress"), [("toolrl", 0.0), ("rest_paper", 0.0), ("rest_release", 0.4)]
)
def test_a_real_rlla_output_scored_against_its_own_calls_earns_the_maximum(rlla, preset, progress):
    for record in rlla:
        calls = parse_response(record["output"], "tags").calls
        reward = tool_reward(record["output"], calls, preset=preset, call_format="tags", progress=progress)
        _, high = reward_range(preset, expects_calls=bool(calls), progress=progress)
        assert reward.total == pytest.approx(high, abs=1e-12), record["output"][-300:]


@pytest.mark.parametrize("call_format", ["python", "qwen"])
def test_real_rlla_calls_in_the_other_formats_earn_the_maximum_of_every_preset(rlla, call_format):
    for i, record in enumerate(rlla):
        _, calls, reply, *_ = parse_response(record["output"], "tags")
        text = f"<think>\nSure.\n</think>\n\n{render_calls(calls, call_format) if calls else reply}"
        preset = PRESETS[i % len(PRESETS)]
        reward = tool_reward(text, calls, preset=preset, call_format=call_format)
        assert reward.total == pytest.approx(reward_range(preset, expects_calls=bool(calls))[1], abs=1e-12)
