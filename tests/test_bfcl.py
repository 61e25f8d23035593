"""BFCL without bfcl-eval: reading stored results, telling styles apart, group figures, and no evaluation of a model's text."""

import ast
import json
import sys
from pathlib import Path

import pytest

from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl import results, styles, table
from dcore_jax.evaluation.bfcl.install import models_without_vendors
from dcore_jax.report import Count

sys.path.insert(0, str(Path(results.__file__).parent / "worker"))
import literal_calls


def row(one: str, result="[f(x=1)]") -> bytes:
    return json.dumps({"id": one, "result": result, "latency": 1.0}).encode()


def test_a_damaged_file_is_reported_by_line_and_the_rest_is_read(tmp_path):
    path = tmp_path / "BFCL_v3_live_simple_result.json"
    path.write_bytes(
        b"\n".join(
            [
                b"\xef\xbb\xbf" + row("live_simple_0-0-0"),
                row("live_simple_1-1-0")[:-20],
                row("live_simple_2-2-0"),
                '{"id": "live_simple_3-3-0", "result": "é"}'.encode("latin-1"),
                b"",
                b"[1, 2]",
                b'{"result": "x"}',
                b'{"id": "live_simple_4-4-0"}',
                b'{"id": "live_simple_5-5-0", "result": 7}',
                row("live_simple_6-6-0", ""),
            ]
        )
    )
    rows, notes = results.read_rows(path)
    assert [(r.line, r.id) for r in rows] == [
        (1, "live_simple_0-0-0"), (3, "live_simple_2-2-0"), (10, "live_simple_6-6-0"),
    ]  # fmt: skip
    assert rows[0].fields == {"latency": 1.0}
    said = [note.removeprefix(f"{path}:") for note in notes]
    assert [note.split(":")[0] for note in said] == ["1", "2", "4", "6", "7", "8", "9"]
    for note, words in zip(
        said, ("byte order mark", "no whole JSON", "not UTF-8", "list", "no id", "no result", "neither text")
    ):
        assert words in note


def test_utf16_empty_and_missing_files(tmp_path):
    path = tmp_path / "BFCL_v3_java_result.json"
    path.write_bytes((row("java_0").decode() + "\n" + row("java_1").decode()).encode("utf-16"))
    rows, notes = results.read_rows(path)
    assert [r.id for r in rows] == ["java_0", "java_1"] and "UTF-16" in notes[0]
    path.write_bytes(b"")
    assert results.read_rows(path) == ([], [f"{path}: is empty"])
    assert "cannot be read" in results.read_rows(tmp_path / "none.json")[1][0]


def matched(ids, given, category="live_multiple"):
    rows = [results.Row(i + 1, one, "x", {}) for i, one in enumerate(given)]
    return results.match_rows(Path("f"), rows, ids, category)


def test_answers_are_matched_by_id_and_a_misspelled_one_by_its_index():
    ids = ["live_multiple_0-0-0", "live_multiple_1-0-1", "live_multiple_2-1-0"]
    found = matched(ids, ["live_multiple_2-1-0", "live_multiple_1-77-0", "live_multiple_0-0-0"])
    assert [(index, row.id) for index, row in found.answers] == [
        (0, "live_multiple_0-0-0"), (1, "live_multiple_1-77-0"), (2, "live_multiple_2-1-0"),
    ]  # fmt: skip
    assert found.by_index == [("live_multiple_1-77-0", "live_multiple_1-0-1")] and not found.notes


def test_an_id_that_is_listed_twice_takes_two_answers_and_a_third_is_a_duplicate():
    ids = ["live_relevance_3-3-0", "live_relevance_4-4-0", "live_relevance_3-3-0"]
    found = matched(ids, [ids[0], ids[0], ids[0], ids[1], "live_relevance_9-9-9"], "live_relevance")
    assert [(index, row.line) for index, row in found.answers] == [(0, 1), (1, 4), (2, 2)]
    assert found.notes == [
        "f:3: live_relevance_3-3-0 is answered again; the first answer is kept",
        "f:5: live_relevance_9-9-9 is no question of live_relevance",
    ]


def test_missing_answers_are_counted_and_v3_ids_are_those_of_v4():
    found = matched(["simple_java_0", "simple_java_1"], ["java_1"], "simple_java")
    assert [index for index, _ in found.answers] == [1]
    assert "1 of 2 questions have no answer" in found.notes[0] and "simple_java_0" in found.notes[0]


def test_a_folder_is_the_models_own_or_holds_models(tmp_path):
    for place in ("A/BFCL_v3_java_result.json", "B_b/live/BFCL_v4_live_simple_result.json", "A/note.json"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("")
    with pytest.raises(UserError, match="choose one with --model-name: A, B_b"):
        results.find_result_files(tmp_path)
    name, files = results.find_result_files(tmp_path, "B/b")
    assert (name, [(f.version, f.category) for f in files]) == ("B/b", [("v4", "live_simple")])
    assert results.find_result_files(tmp_path / "A")[0] == "A"
    assert results.find_result_files(tmp_path / "B_b" / "live")[0] == "B_b"
    with pytest.raises(UserError, match="holds no results of 'C'"):
        results.find_result_files(tmp_path, "C")
    with pytest.raises(UserError, match="no folder"):
        results.find_result_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("stored", "known", "kind", "underscores"),
    [
        (["[f(x=1)]", "no tool"], None, "prompt", False),
        ([[{"a_b": "{}"}], "text"], None, "calls", True),
        ([[{"a.b": "{}"}], "text"], None, "calls", False),
        ([[{"a_b": "{}"}], [{"a_b": "{}"}], [{"a.b": "{}"}], [{"x.y": "{}"}], [{"x.z": "{}"}]], None, "calls", True),
        ([[[[{"ls": "{}"}], "done"]]], None, "calls", True),
        (['<tool_call>\n{"name": "f"}\n</tool_call>', "no"], None, "tags", False),
        (["no", "neither"], {"name": "Q-FC", "function_calling": True, "underscores": False}, "tags", False),
        ([[{"a_b": {}}]], {"name": "Q-FC", "function_calling": True, "underscores": False}, "calls", False),
        (['<tool_call>\n{}\n</tool_call>'], {"name": "Q", "function_calling": False, "underscores": False}, "prompt", False),
    ],
)  # fmt: skip
def test_a_models_style_is_seen_from_its_answers(stored, known, kind, underscores):
    style = styles.style_of(stored, known, dotted_names=["a.b"])
    assert (style.kind, style.underscores) == (kind, underscores) and style.reason


def test_group_figures_by_the_leaderboards_formulas():
    shares = {
        "simple": 0.9,
        "java": 0.6,
        "javascript": 0.3,
        "multiple": 0.8,
        "parallel": 0.4,
        "parallel_multiple": 0.2,
    }
    shares |= {"irrelevance": 0.5} | dict(zip(("multi_turn_base", "multi_turn_miss_func"), (0.4, 0.2)))
    shares |= {"multi_turn_miss_param": 0.1, "multi_turn_long_context": 0.3}
    live = {"live_simple": Count(1, 2), "live_multiple": Count(3, 6), "live_parallel": Count(0, 1)}
    live |= {
        "live_parallel_multiple": Count(1, 1),
        "live_irrelevance": Count(5, 8),
        "live_relevance": Count(2, 2),
    }
    found = table.group_accuracies(shares, live, "v3")
    # (mean(0.9, 0.6, 0.3) + 0.8 + 0.4 + 0.2 + 0.5) / 5; 12 of 20; mean of the four; mean of the three groups
    assert found == {k: pytest.approx(v) for k, v in
                     {"non_live": 0.5, "live": 0.6, "multi_turn": 0.25, "overall": 0.45}.items()}  # fmt: skip
    del shares["java"]
    assert set(table.group_accuracies(shares, live, "v3")) == {"live", "multi_turn"}


METHODS = {"cd": ["folder"], "post": ["content", "tags"]}


@pytest.mark.parametrize(
    "call",
    [
        "__import__('os').system('touch x')",
        "cd(folder=__import__('os').getcwd())",
        "cd(folder=open('x'))",
        "cd(folder='a') or print(1)",
        "cd('a')",
        "cd(**{'folder': 'a'})",
        "open(file='x', mode='w')",
        "x.cd(folder='a')",
        "cd(folder=[y for y in (1,)])",
        "cd(folder=f'{1}')",
        "cd(folder=(lambda: 1)())",
        "cd(folder='a'",
        "(" * 500,
    ],
)
def test_only_tools_with_literal_values_reach_the_executor(call):
    assert literal_calls.rebuilt(call, METHODS) == literal_calls.NO_TOOL


@pytest.mark.parametrize(
    "call", ["cd(folder='a')", "post(content='x(1)', tags=['#a', {'k': (1, -2.5, None, True)}])", "cd(folder=cd(folder='b'))"]
)  # fmt: skip
def test_a_tools_call_is_rebuilt_as_it_was(call):
    assert ast.dump(ast.parse(literal_calls.rebuilt(call, METHODS))) == ast.dump(ast.parse(call))


@pytest.mark.parametrize(
    "text",
    ["1 + 2 * 3", "-7 // 2", "2 ** 10 % 7", "'a' + 'b'", "[1] * 3 + [2]", "1 << 3 | 5", "(1, 2) + (3,)"],
)
def test_arithmetic_gives_what_eval_would(text):
    assert literal_calls.arithmetic(ast.parse(text, mode="eval").body) == eval(text)  # noqa: S307


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9",
        "'a' * 10 ** 9",
        "10 ** 9 * [0]",
        "1 << 10 ** 9",
        "x + 1",
        "open('x') + 1",
        "'%99999d' % 1",
    ],
)
def test_arithmetic_refuses_names_calls_and_what_grows(text):
    with pytest.raises(literal_calls.NotDecoded):
        literal_calls.arithmetic(ast.parse(text, mode="eval").body)


def test_a_reference_calls_positional_arguments_get_their_names():
    assert literal_calls.named_arguments("post('hi', tags=['#a'])", METHODS) == {
        "post": {"content": "hi", "tags": ["#a"]}
    }


def test_the_list_of_models_is_kept_without_the_vendors():
    source = """
import nowhere
from vendor import AHandler
A = {"x/y-FC": ModelConfig(model_name="x", model_handler=AHandler, is_fc_model=True, underscore_to_dot=True)}
B = {"z": ModelConfig(model_name="z", model_handler=BHandler, is_fc_model=False, underscore_to_dot=False, input_price=None)}
MODEL_CONFIG_MAPPING = {**A, **B}
"""
    module: dict = {}
    exec(models_without_vendors(source), module)
    found = {name: tuple(model) for name, model in module["MODEL_CONFIG_MAPPING"].items()}
    assert found == {"x/y-FC": (True, True, "AHandler"), "z": (False, False, "BHandler")}
