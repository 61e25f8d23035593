"""Rewards against tables worked out by hand, one row for every branch of every preset."""

import re
from fractions import Fraction as F
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.calls import CALL_FORMATS, Call, render_calls, values_equal
from dcore_jax.errors import UserError
from dcore_jax.rewards import PRESETS, format_rule, matching, reward_range, tool_reward
from dcore_jax.rewards.matching import accuracy, jaccard, match_calls

WEATHER, ALARM = Call("weather", {"city": "Oslo", "days": 3}), Call("alarm", {"time": "07:00"})
REFERENCE = [WEATHER, ALARM]


def turn(calls, call_format="python", thought="Both."):
    """A response in the layout that the format rules of all presets accept."""
    answer = render_calls(calls, call_format) if not isinstance(calls, str) else calls
    if call_format == "tags":
        return f"<think> {thought} </think>\n{answer}"
    return f"<think>\n{thought}\n</think>\n\n{answer}"


def weather(**arguments):
    return Call("weather", arguments)


# predicted calls, then by hand: J(names), sum of J(parameter names), equal values; and D-CORE's struct, key, value.
# Reference: weather(city, days), alarm(time), so that ToolRL's denominator is 1 + (1 + 2) + (1 + 1) = 6.
TABLE = {
    "the reference": ([WEATHER, ALARM], (1, 2, 3), (1, 1, 1)),
    "another order": ([ALARM, WEATHER], (1, 2, 3), (1, 1, 1)),
    "an equal float": ([weather(city="Oslo", days=3.0), ALARM], (1, 2, 3), (1, 1, 1)),
    "a wrong value": ([weather(city="Oslo", days=4), ALARM], (1, 2, 2), (1, 1, F(3, 4))),
    "a number as text": ([weather(city="Oslo", days="3"), ALARM], (1, 2, 2), (1, 1, F(3, 4))),
    "only wrong values": ([weather(city="Rome", days=1), ALARM], (1, 2, 1), (1, 1, F(1, 2))),
    "a missing parameter": ([weather(city="Oslo"), ALARM], (1, F(3, 2), 2), (1, F(1, 2), F(3, 4))),
    "an extra parameter": (
        [weather(city="Oslo", days=3, unit="C"), ALARM],
        (1, F(5, 3), 3),
        (1, F(1, 2), 1),
    ),
    "other parameters": ([weather(town="Oslo"), ALARM], (1, 1, 1), (1, F(1, 2), F(1, 2))),
    "a missing call": ([WEATHER], (F(1, 2), 1, 2), (0, F(1, 2), F(1, 2))),
    "an extra call": ([WEATHER, ALARM, Call("now")], (F(2, 3), 2, 3), (0, 1, 1)),
    "a repeated call": ([WEATHER, WEATHER, ALARM], (F(2, 3), 2, 3), (0, 1, 1)),
    "a wrong name": (
        [Call("forecast", dict(WEATHER.arguments)), ALARM],
        (F(1, 3), 1, 1),
        (0, F(1, 2), F(1, 2)),
    ),
    "nothing right": ([Call("now")], (0, 0, 0), (0, 0, 0)),
    "the better of two": ([weather(city="Rome"), WEATHER, ALARM], (F(2, 3), 2, 3), (0, 1, 1)),
}
rows = pytest.mark.parametrize(("predicted", "shares", "dcore"), TABLE.values(), ids=TABLE.keys())


@rows
@pytest.mark.parametrize("call_format", CALL_FORMATS)
def test_toolrl_and_dcore_release_follow_the_hand_table(predicted, shares, dcore, call_format):
    correctness = float(6 * sum(shares, F(0)) / 6 - 3)
    text = turn(predicted, call_format)
    toolrl = tool_reward(text, REFERENCE, preset="toolrl", call_format=call_format)
    assert toolrl.parts == pytest.approx({"format": 1.0, "correctness": correctness})
    release = tool_reward(text, REFERENCE, preset="dcore_release", call_format=call_format)
    kept = call_format != "tags"  # the tags layout breaks D-CORE's rule of line breaks around the thought
    assert release.parts == pytest.approx({"format": float(kept), "correctness": correctness})


@rows
def test_dcore_paper_follows_the_hand_table(predicted, shares, dcore):
    reward = tool_reward(turn(predicted), REFERENCE, preset="dcore_paper")
    expected = dict(zip(("format", "struct", "key", "value"), (1, *dcore)))
    assert reward.parts == pytest.approx({name: float(share) for name, share in expected.items()})
    assert reward.total == pytest.approx(float(1 + sum(dcore, F(0))))


@rows
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_rest_paper_follows_the_hand_table(predicted, shares, dcore, progress):
    reward = tool_reward(
        turn(predicted, "tags"),
        REFERENCE,
        preset="rest_paper",
        call_format="tags",
        progress=progress,
        beta_accuracy=3.0,
        beta_format=0.5,
    )
    s_acc = float(sum(shares, F(0)) / 6)
    assert reward.parts == pytest.approx(
        {"format": (1 - progress) * 0.5, "accuracy": (1 - progress) * 3 * s_acc}
    )


# progress -> step of 150, then the release's four limits at that step, worked out by hand
@rows
@pytest.mark.parametrize(
    ("progress", "limit", "good", "bad"),
    [(0.0, 2.0, 2.0, -2.0), (0.25, 2.25, 1.75, -1.5), (0.5, 2.5, 1.5, -1.0), (1.0, 3.0, 1.0, -1.0)],
)
def test_rest_release_follows_the_hand_table(predicted, shares, dcore, progress, limit, good, bad):
    options = {"preset": "rest_release", "call_format": "tags", "progress": progress}
    correctness = -limit + 2 * limit * float(sum(shares, F(0)) / 6)
    reward = tool_reward(turn(predicted, "tags"), REFERENCE, **options)
    assert reward.parts == pytest.approx({"format": good, "correctness": correctness})
    broken = tool_reward(render_calls(predicted, "tags"), REFERENCE, **options)  # no thought
    assert broken.parts == pytest.approx({"format": bad, "correctness": correctness})


# response after the thought -> correctness with calls expected, and with none expected
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("dcore_release", {"reply": (-3, 3), "calls": (3, -3), "broken": (-3, -3)}),
        ("toolrl", {"reply": (-3, 0), "calls": (3, 0), "broken": (-3, 0)}),
        ("rest_release", {"reply": (-2, 0), "calls": (2, 0), "broken": (-2, 0)}),
    ],
)
@pytest.mark.parametrize("call_format", CALL_FORMATS)
def test_correctness_of_replies_and_unreadable_calls(preset, expected, call_format):
    broken = {
        "python": "[weather(]",
        "tags": "<tool_call>\nweather\n</tool_call>",
        "qwen": "<tool_call>x</tool_call>",
        "json": '{"name": "weather", "arguments": 1}',
    }
    responses = {"reply": "No.", "calls": render_calls(REFERENCE, call_format), "broken": broken[call_format]}
    for kind, (with_calls, without) in expected.items():
        text = turn(responses[kind], call_format)
        options = {"preset": preset, "call_format": call_format}
        assert tool_reward(text, REFERENCE, **options).parts["correctness"] == with_calls, kind
        assert tool_reward(text, [], **options).parts["correctness"] == without, kind
        assert bool(tool_reward(text, [], **options).error) == (kind == "broken")


@pytest.mark.parametrize("call_format", CALL_FORMATS)
def test_papers_score_replies_and_unreadable_calls_by_what_they_can_read(call_format):
    broken = {
        "python": "[weather(]",
        "tags": "<tool_call>\nweather\n</tool_call>",
        "qwen": "<tool_call>x</tool_call>",
        "json": '{"name": "weather", "arguments": 1}',
    }
    cases = [("No.", 0, 1), (render_calls(REFERENCE, call_format), 1, 0), (broken[call_format], 0, 0)]
    for answer, with_calls, without in cases:
        for reference, share in ((REFERENCE, with_calls), ([], without)):
            text = turn(answer, call_format)
            dcore = tool_reward(text, reference, preset="dcore_paper", call_format=call_format).parts
            assert [dcore[part] for part in ("struct", "key", "value")] == [share] * 3
            rest = tool_reward(text, reference, preset="rest_paper", call_format=call_format).parts
            assert rest["accuracy"] == share


def test_dcore_release_takes_a_cut_off_thought_for_a_reply_and_its_paper_for_nothing():
    text = "<think>\nLet me think about"
    assert tool_reward(text, []).parts == {"format": 0.0, "correctness": 3.0}
    assert tool_reward(text, REFERENCE).parts == {"format": 0.0, "correctness": -3.0}
    assert tool_reward(text, [], preset="dcore_paper").total == 0.0


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>\na\n</think>\n\nb", True),
        ("<think>\na\n</think>\n\nb\n\nc\n", True),  # no anchor at the end
        (" \n<think>\na\n</think>\n\nb", True),  # stripped first, as the release strips
        ("<think>\na</think> b\n</think>\n\nc", True),
        ("<think>\n\n</think>\n\nb", True),
        ("<think>\n</think>\n\nb", False),  # one line break cannot open and close
        ("<think>a\n</think>\n\nb", False),
        ("<think>\na</think>\n\nb", False),
        ("<think>\na\n</think>\nb", False),
        ("<think>\na\n</think>\n\n", False),  # nothing left after the strip
        ("x<think>\na\n</think>\n\nb", False),
        ("a\n</think>\n\nb", False),
        ("b", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("preset", ["dcore_paper", "dcore_release"])
def test_dcores_format_rule(preset, text, good):
    assert tool_reward(text, [], preset=preset).parts["format"] == good
    # The same as the published pattern on the stripped text.
    assert bool(re.search(r"^<think>\n.*?\n</think>\n\n", text.strip(), re.DOTALL)) == good


CALL, REPLY = '\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>', "\n<response> Hi. </response>"


# text -> followed by ToolRL's rule, by ResT's; with what the reference turn holds
@pytest.mark.parametrize(
    ("expects_calls", "expects_reply", "text", "toolrl", "rest"),
    [
        (True, None, f"<think>a</think>{CALL}", True, True),
        (True, None, f" <think>a</think>{CALL}\n", True, True),
        (True, None, f"<think>use <tool_call> or <response></think>{CALL}", True, True),
        (True, None, f"<think>a</think>\n{CALL}", False, True),
        (True, None, f"<think>a</think>{CALL} trailing", False, True),
        (True, None, f"x<think>a</think>{CALL}", False, True),
        (True, None, '<think>a</think><tool_call>{"name": "f", "parameters": {}}</tool_call>', False, True),
        (True, None, "<think>a</think>\n<tool_call>\n</tool_call>", False, True),
        (True, None, "<think>a</think>\n<tool_call>\n\n</tool_call>", True, True),
        (True, None, f"<think>a</think>{CALL}{CALL}", False, False),
        (True, None, f"<think>a</think>{CALL}{REPLY}", False, False),
        (True, None, f"<think>a</think>{REPLY}", False, False),
        (True, None, f"a</think>{CALL}", False, False),
        (True, None, CALL, False, False),
        (True, None, f"<think>a{CALL}", False, False),
        (True, None, f"{CALL}<think>a</think>", False, False),
        (True, True, f"<think>a</think>{CALL}{REPLY}", True, True),
        (True, True, f"<think>a</think>{CALL}\n{REPLY}", False, True),
        (True, True, f"<think>a</think>{REPLY}{CALL}", False, False),
        (True, True, f"<think>a</think>{CALL}", False, False),
        (False, None, f"<think>a</think>{REPLY}", True, True),
        (False, None, f"<think>a</think>{CALL}{REPLY}", False, True),
        (False, None, "<think>a</think>\nHi.", False, False),
        (False, None, f"<think>a</think>{REPLY}{REPLY}", False, False),
        (False, None, "<think>a</think>\n<response>Hi.", False, False),
        (False, False, "<think>a</think>", True, True),
        (False, False, "<think>a</think>\nHi.", False, True),
    ],
)
def test_toolrls_and_rests_format_rules_on_tags(expects_calls, expects_reply, text, toolrl, rest):
    reference = [Call("f")] if expects_calls else []
    options = {"call_format": "tags", "expects_reply": expects_reply}
    assert tool_reward(text, reference, preset="toolrl", **options).parts["format"] == toolrl
    assert tool_reward(text, reference, preset="rest_paper", **options).parts["format"] == rest


@pytest.mark.parametrize("space", ["", "\n", "\n\n", " \n\t\n"])
def test_toolrl_any_space_is_toolrl_but_for_the_white_space_after_the_thought(space):
    for reference, reply, answer in [
        ([Call("f")], None, CALL), ([], None, REPLY), ([Call("f")], True, f"{CALL}{REPLY}"), ([], False, "")
    ]:  # fmt: skip
        text, options = (
            f"<think>a</think>{space}{answer.lstrip()}",
            {"call_format": "tags", "expects_reply": reply},
        )
        free = tool_reward(text, reference, preset="toolrl_any_space", **options)
        strict = tool_reward(f"<think>a</think>{answer}", reference, preset="toolrl", **options)
        assert free == strict and free.parts["format"] == 1.0
        published = tool_reward(text, reference, preset="toolrl", **options).parts["format"]
        assert published == (space == "\n" or not answer)
    broken = f"<think>a</think>{space}{CALL.lstrip()} trailing"
    assert (
        tool_reward(broken, [Call("f")], preset="toolrl_any_space", call_format="tags").parts["format"] == 0
    )


# What Qwen3's template makes of a thought and an answer: one line break inside of the tags, a blank line after the thought.
NATIVE = "<think>\n{}\n</think>\n\n{}"


@pytest.mark.parametrize("call_format", CALL_FORMATS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_perfect_answer_in_qwen3s_own_layout_reaches_the_top(preset, call_format):
    """The one exception: ToolRL's published rule, which only `tags` has, wants a single line break after the thought."""
    twice = [Call("f", {"a": [1, "</think>"]}), Call("f", {"a": None}), Call("now")]
    reply = "<response>Hi.</response>" if call_format == "tags" else "Hi."
    for thought in ("Look it up.", ""):
        for reference in (REFERENCE, twice, []):
            text = NATIVE.format(thought, render_calls(reference, call_format) if reference else reply)
            for progress in (0.0, 0.5):
                options = {"preset": preset, "progress": progress}
                reward = tool_reward(text, reference, call_format=call_format, **options)
                top = reward_range(expects_calls=bool(reference), **options)[1]
                missing = 1.0 if (preset, call_format) == ("toolrl", "tags") else 0.0
                assert reward.total == pytest.approx(top - missing)
                assert (reward.parts["format"] == 0.0) == bool(missing)


def test_a_perfect_native_qwen3_call_earns_four_of_four():
    text = '<think>\nRain?\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    reference = [Call("weather", {"city": "Oslo"})]
    for preset in ("dcore_paper", "dcore_release", "toolrl", "toolrl_any_space"):
        assert tool_reward(text, reference, preset=preset, call_format="qwen").total == 4.0


@pytest.mark.parametrize("call_format", CALL_FORMATS)
def test_every_presets_format_rule_can_be_named(call_format):
    rules = {preset: format_rule(preset, call_format) for preset in PRESETS}
    assert rules["dcore_paper"] == rules["dcore_release"] and "blank line" in rules["dcore_paper"]
    assert (rules["toolrl"] == rules["toolrl_any_space"]) == (call_format != "tags")
    assert all(("ours" in rules[name]) == (call_format != "tags") for name in ("toolrl", "rest_paper"))


@pytest.mark.parametrize("preset", ["toolrl", "rest_paper"])
def test_their_format_rules_on_other_formats_ask_for_a_thought_and_what_is_expected(preset):
    call = {"python": "[f()]", "qwen": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'}
    for call_format, calls in call.items():
        for text, reference, good in [
            (f"<think>a</think>\n\n{calls}", [Call("f")], True),
            (f"<think>a</think>\n\nSure. {calls}", [Call("f")], False),
            (calls, [Call("f")], False),
            ("<think>a</think>\n\nHi.", [Call("f")], False),
            ("<think>a</think>\n\nHi.", [], True),
            (f"<think>a</think>\n\n{calls}", [], False),
            ("<think>a</think>\n\n", [], False),
        ]:
            assert (
                tool_reward(text, reference, preset=preset, call_format=call_format).parts["format"] == good
            )


def test_values_keep_their_types_in_every_preset():
    """1 equals 1.0, and neither True nor "1" equals 1: at every depth, in every format."""
    reference = [Call("f", {"a": 1, "b": [1.0, {"c": True}]})]
    for preset in PRESETS:
        for call_format in CALL_FORMATS:
            options = {"preset": preset, "call_format": call_format}
            best = tool_reward(turn(reference, call_format), reference, **options).total
            same = [Call("f", {"a": 1.0, "b": [1, {"c": True}]})]
            assert tool_reward(turn(same, call_format), reference, **options).total == best
            for a, b in [(True, [1, {"c": True}]), ("1", [1, {"c": True}]), (1, [1, {"c": 1}])]:
                other = [Call("f", {"a": a, "b": b})]
                assert tool_reward(turn(other, call_format), reference, **options).total < best


def test_a_call_without_parameters_earns_its_share_only_without_parameters():
    right, extra = tool_reward("[now()]", [Call("now")]), tool_reward("[now(zone=1)]", [Call("now")])
    assert right.parts["correctness"] == 3.0  # (1 + 1) / (1 + 1)
    assert extra.parts["correctness"] == 0.0  # (1 + 0) / (1 + 1)
    paper = tool_reward("[now(zone=1)]", [Call("now")], preset="dcore_paper")
    assert paper.parts == {"format": 0.0, "struct": 1.0, "key": 0.0, "value": 0.0}


def test_matching_is_greedy_in_the_order_of_the_reference():
    """The first reference call takes the only prediction, although the second would have fitted it better."""
    reference = [Call("f", {"a": 1}), Call("f", {"a": 1, "b": 2})]
    (first, second) = match_calls([Call("f", {"a": 1, "b": 2})], reference)
    assert (first.keys, first.values, second.predicted) == (0.5, 1, None)
    # names 1/2, greedy 1/2 + 1, over 1 + 2 + 3
    assert accuracy([Call("f", {"a": 1, "b": 2})], reference) == pytest.approx(2 / 6)


def test_a_prediction_that_shares_nothing_is_left_for_a_later_reference():
    reference = [Call("f", {"a": 1}), Call("f", {"b": 2})]
    (first, second) = match_calls([Call("f", {"b": 3})], reference)
    assert first.predicted is None
    assert (second.keys, second.values) == (1.0, 0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 1),
        ("a", "", 0),
        ("", "a", 0),
        ("ab", "ba", 1),
        ("aab", "abb", F(2, 4)),
        ("aa", "a", F(1, 2)),
        ("ab", "cd", 0),
    ],
)
def test_jaccard_counts_multisets(a, b, expected):
    assert jaccard(list(a), list(b)) == pytest.approx(float(expected))


small_calls = st.lists(
    st.builds(
        Call, st.sampled_from("fg"), st.dictionaries(st.sampled_from("abc"), st.integers(0, 1), max_size=3)
    ),
    max_size=4,
)


def _score(reference, predicted):
    if reference.name != predicted.name:
        return 0.0
    a, b = set(reference.arguments), set(predicted.arguments)
    names = len(a & b) / len(a | b) if a | b else 1.0
    return names + sum(predicted.arguments.get(k) == v for k, v in reference.arguments.items())


@settings(max_examples=150, deadline=None)
@given(small_calls, small_calls)
def test_each_prediction_is_matched_once_and_greedy_never_beats_the_best_assignment(predicted, reference):
    scores = [[_score(r, p) for p in predicted] + [0.0] * len(reference) for r in reference]
    columns = range(len(predicted) + len(reference))
    best = max(
        sum(row[column] for row, column in zip(scores, chosen))
        for chosen in permutations(columns, len(reference))
    )
    matches = match_calls(predicted, reference)
    assert sum(m.keys + m.values for m in matches) <= best + 1e-9
    unused = list(predicted)
    for m in matches:
        if m.predicted is not None:
            unused.remove(m.predicted)  # raises when it is not there any more
            assert m.keys + m.values == pytest.approx(_score(m.reference, m.predicted))
            assert m.keys + m.values > 0


def match_by_definition(predicted, reference):
    """`match_calls` as ToolRL's section 3.3 has it: every pair scored in full, multisets counted item by item."""
    used, matches = set(), []
    for call in reference:
        best, best_index = (None, 0.0, 0), -1
        for i, candidate in enumerate(predicted):
            if i in used or candidate.name != call.name:
                continue
            keys = jaccard(list(call.arguments), list(candidate.arguments))
            values = 0
            for name, value in call.arguments.items():
                if name in candidate.arguments and same(candidate.arguments[name], value):
                    values += 1
            if keys + values > best[1] + best[2]:
                best, best_index = (candidate, keys, values), i
        used.add(best_index)
        matches.append(best)
    return matches


def same(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b)]
    return (all(numbers) or type(a) is type(b)) and a == b


any_values = st.sampled_from([0, 1, 1.0, 0.0, True, False, None, "1", "", [], [1], [1.0], [True], 2**70])
alike_calls = st.lists(
    st.builds(
        Call, st.sampled_from("ffg"), st.dictionaries(st.sampled_from("abcde"), any_values, max_size=5)
    ),
    max_size=7,
)


@settings(max_examples=300, deadline=None)
@given(alike_calls, alike_calls)
def test_matching_equals_its_definition_to_the_bit_and_to_the_prediction(predicted, reference):
    found, expected = match_calls(predicted, reference), match_by_definition(predicted, reference)
    assert [match.reference for match in found] == reference
    assert [(m.keys, m.values) for m in found] == [(keys, values) for _, keys, values in expected]
    assert all(m.predicted is e[0] for m, e in zip(found, expected))


def test_values_are_compared_only_where_they_could_still_win(monkeypatch):
    compared = []
    monkeypatch.setattr(matching, "values_equal", lambda a, b: compared.append((a, b)) or values_equal(a, b))
    made = [Call("f", {"a": 1, "b": 2}), *[Call("f", {"a": 1, "b": 3})] * 9, *[Call("f", {"a": 1})] * 9]
    (match,) = match_calls(made, [Call("f", {"a": 1, "b": 2})])
    assert (match.predicted, match.values) == (made[0], 2)
    assert compared == [(1, 1), (2, 2)]


def test_the_same_call_asked_for_and_made_twice_counts_twice():
    assert accuracy([WEATHER, WEATHER], [WEATHER, WEATHER]) == 1.0
    assert accuracy([WEATHER], [WEATHER, WEATHER]) == pytest.approx((1 / 2 + 3) / 7)


@settings(max_examples=100, deadline=None)
@given(
    small_calls, st.randoms(use_true_random=False), st.sampled_from(PRESETS), st.sampled_from(CALL_FORMATS)
)
def test_the_reference_itself_earns_the_maximum_in_any_order_of_distinct_names(
    calls, random, preset, call_format
):
    reference = [Call(f"{call.name}{i}", call.arguments) for i, call in enumerate(calls)]
    shuffled = random.sample(reference, len(reference))
    answer = render_calls(shuffled, call_format) if reference else "Hi."
    if call_format == "tags" and not reference:
        answer = "<response>Hi.</response>"
    layout = (
        "<think>\na\n</think>\n"
        if call_format == "tags" and preset == "toolrl"
        else "<think>\na\n</think>\n\n"
    )
    reward = tool_reward(layout + answer, reference, preset=preset, call_format=call_format)
    assert reward.total == pytest.approx(reward_range(preset, expects_calls=bool(reference))[1])


@pytest.mark.parametrize(
    ("preset", "expects_calls", "progress", "expected"),
    [
        ("dcore_paper", True, 0, (0, 4)),
        ("dcore_release", True, 0, (-3, 4)),
        ("dcore_release", False, 0, (-3, 4)),
        ("toolrl", True, 0, (-3, 4)),
        ("toolrl", False, 0, (0, 1)),
        ("rest_paper", True, 0, (0, 2)),
        ("rest_paper", True, 0.75, (0, 0.5)),
        ("rest_release", True, 0, (-4, 4)),
        ("rest_release", True, 1, (-4, 4)),
        ("rest_release", False, 0.5, (-1, 1.5)),
    ],
)
def test_reward_ranges(preset, expects_calls, progress, expected):
    assert reward_range(preset, expects_calls=expects_calls, progress=progress) == pytest.approx(expected)


def test_mistakes_of_the_user_are_named():
    for options, message in [
        ({"preset": "dcore"}, "reward preset 'dcore' is unknown; choose one of dcore_paper"),
        ({"call_format": "xml"}, "call format 'xml' is unknown; choose one of python"),
        ({"progress": 1.5}, r"progress must lie in \[0, 1\], found 1.5"),
        ({"progress": float("nan")}, "found nan"),
    ]:
        with pytest.raises(UserError, match=message):
            tool_reward("", [], **options)
    with pytest.raises(UserError, match='reference call 0 \\(f\\): "arguments"'):
        tool_reward("", [{"name": "f", "parameters": {}}])


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "rewards.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        if file := re.match(r"# (\w+\.py)\n", block):
            Path(file[1]).write_text(block)
        exec(compile(block, str(page), "exec"), {})
