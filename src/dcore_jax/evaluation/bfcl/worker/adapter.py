"""The one file that knows `bfcl-eval`: its data, its checkers and its tool classes, in a process of its own.

It is started as a script (../client.py) with a folder that install.py filled, imports nothing of dcore_jax, and answers a request
a line. So the two versions of `bfcl-eval`, which share a package name, never meet; JAX is not loaded where a file is scored; and
a checker that hangs or dies takes no run with it.

No text of a model is evaluated here. `bfcl-eval` decodes arithmetic inside an argument with `eval`, and runs the calls of its
multi-turn categories as strings through `eval`: the first is replaced by `arithmetic`, the second only ever sees what
`rebuilt` (literal_calls.py) has written from parsed calls: a public method of an involved class with literal values.
"""

import ast
import builtins
import copy
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from item_limit import ItemTimeout, time_limit
from literal_calls import NO_TOOL, NotDecoded, arithmetic, named_arguments, rebuilt

SESSION = "session"  # begins the names of a conversation's instances
MODEL = "dcore"  # the name under which an instance of a tool class is kept
UNDERSCORES = "dcore-underscores"  # a model whose function names hold `_` where the benchmark's hold `.`


class Benchmark:
    """One version of the benchmark. Each public method answers a request of `Client`.

    Args:
      version: `v3` or `v4`.
      seconds: time limit of one item.
    """

    def __init__(self, version: str, seconds: float):
        self.version = version
        self.seconds = seconds
        self.mapping = importlib.import_module("bfcl_eval.constants.category_mapping")
        self.config = importlib.import_module("bfcl_eval.constants.eval_config")
        self.utils = importlib.import_module("bfcl_eval.utils")
        self.handlers = importlib.import_module("bfcl_eval.model_handler.utils")
        self.models = importlib.import_module("bfcl_eval.constants.model_config").MODEL_CONFIG_MAPPING
        self.check_calls = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
        self.executor = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils")
        self.check_turns = importlib.import_module(
            "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker"
        ).multi_turn_checker
        _replace_eval(self.handlers)
        plain = type("Model", (), {"underscore_to_dot": False})
        self.models[MODEL] = plain
        self.models[UNDERSCORES] = type("Model", (plain,), {"underscore_to_dot": True})
        self.sessions: dict[str, dict[str, Any]] = {}
        self.entries = cache(self._entries)
        self.references = cache(self._references)

    # -- what there is ------------------------------------------------------------------------------------------------------

    def catalogue(self) -> dict[str, Any]:
        """Every category, and the groups of categories that the benchmark's own command line knows."""
        groups = {name: list(names) for name, names in self.mapping.TEST_COLLECTION_MAPPING.items()}
        return {"categories": list(dict.fromkeys(groups["all"])), "groups": groups}

    def ids(self, category: str) -> list[str]:
        """Ids of a category's questions in the benchmark's order; v3's live_relevance lists one of them twice."""
        return [entry["id"] for entry in self.entries(category)]

    def dotted_names(self, category: str) -> list[str]:
        """Names of a category's functions that hold a dot, which many APIs refuse."""
        names = {
            function["name"] for entry in self.entries(category) for function in entry.get("function", ())
        }
        return sorted(name for name in names if "." in name)

    def references_of(self, category: str) -> list[dict[str, Any]]:
        """The reference answers beside `ids(category)`."""
        return self.references(category)

    def model(self, name: str) -> dict[str, Any] | None:
        """What the benchmark's list of models says of a name, as a folder or a user may spell it."""
        spelled = {name, name.replace("_", "/"), name.replace("_", "/", 1)}
        known = {listed.lower(): listed for listed in self.models}
        for one in spelled:
            if (listed := known.get(one.lower())) and hasattr(self.models[listed], "handler"):
                model = self.models[listed]
                return {
                    "name": listed,
                    "function_calling": model.is_fc_model,
                    "underscores": model.underscore_to_dot,
                    "handler": model.handler,
                }
        return None

    # -- scoring ------------------------------------------------------------------------------------------------------------

    def score(
        self, category: str, rows: Sequence[tuple[int, Any]], style: Mapping[str, Any]
    ) -> list[tuple[bool, str]]:
        """Whether each answer is right, and why not.

        Args:
          rows: index of the question in `ids(category)`, and the stored result.
          style: `kind` (`prompt`, `tags`, `calls`) and `underscores`; see ../styles.py.
        """
        return [self._score_within_limit(category, index, result, style) for index, result in rows]

    def _score_within_limit(
        self, category: str, index: int, result: Any, style: Mapping[str, Any]
    ) -> tuple[bool, str]:
        try:
            with time_limit(self.seconds):
                return self._score(category, index, result, style)
        except ItemTimeout:
            return False, f"stopped after {self.seconds:g} s"
        except Exception as error:  # the checkers assume well-formed answers; a strange one is a wrong one
            return False, f"the checker failed: {type(error).__name__}: {error}"
        finally:
            self._forget_instances()

    def _score(self, category: str, index: int, result: Any, style: Mapping[str, Any]) -> tuple[bool, str]:
        if "multi_turn" in category:
            return self._score_turns(category, index, result, style)
        if "web_search" in category or "memory" in category:
            return self._score_final_answer(category, index, result, style)
        if "relevance" in category:
            return self._score_relevance(category, result, style)
        return self._score_calls(category, index, result, style)

    def _score_relevance(self, category: str, result: Any, style: Mapping[str, Any]) -> tuple[bool, str]:
        try:
            called = not self.utils.is_empty_output(self._decode(result, style, "python"))
        except Exception:
            called = False
        if "irrelevance" in category:
            return not called, "a call where no tool serves" if called else ""
        return called, "" if called else "no call where one was asked for"

    def _score_calls(
        self, category: str, index: int, result: Any, style: Mapping[str, Any]
    ) -> tuple[bool, str]:
        entry, reference = self.entries(category)[index], self.references(category)[index]["ground_truth"]
        language = "javascript" if "javascript" in category else "java" if "java" in category else "python"
        name, form, tag = category, language, False
        if category == "format_sensitivity":
            _, variation, name = entry["id"].split(":")
            form, tag, *_ = self.handlers.parse_prompt_variation_params(variation)
        try:
            calls = self._decode(result, style, form, tag)
        except Exception as error:
            return False, f"no call can be read: {error}"
        if not self.utils.is_function_calling_format_output(calls):
            return False, "the answer is no list of calls"
        checked = self.check_calls(
            entry["function"],
            calls,
            reference,
            self._named("Language", language),
            name,
            UNDERSCORES if style["underscores"] else MODEL,
        )
        return checked["valid"], "" if checked["valid"] else _line(checked["error"])

    def _score_turns(
        self, category: str, index: int, result: Any, style: Mapping[str, Any]
    ) -> tuple[bool, str]:
        entry, reference = self.entries(category)[index], self.references(category)[index]["ground_truth"]
        if not isinstance(result, list):
            return False, "the result is no list of turns"
        if len(result) != len(reference):
            return False, f"{len(result)} turns of {len(reference)}: stopped while answering"
        methods = self._methods(tuple(entry["involved_classes"]))
        turns = [[calls for step in turn if (calls := self._steps_calls(step, style))] for turn in result]
        rebuilt_turns = [[[rebuilt(call, methods) for call in calls] for calls in turn] for turn in turns]
        checked = self.check_turns(rebuilt_turns, reference, entry, category, MODEL)
        return checked["valid"], "" if checked["valid"] else _line(checked["error_message"])

    def _score_final_answer(
        self, category: str, index: int, result: Any, style: Mapping[str, Any]
    ) -> tuple[bool, str]:
        check = importlib.import_module("bfcl_eval.eval_checker.agentic_eval.agentic_checker").agentic_checker
        if not isinstance(result, list) or len(result) != 1:
            return False, "the result is no list of one turn"
        answers = [step for step in result[0] if not self._steps_calls(step, style)]
        if not answers or not answers[-1]:
            return False, "no answer beside calls"
        checked = check(answers[-1], self.references(category)[index]["ground_truth"])
        return checked["valid"], "" if checked["valid"] else _line(checked["error_message"])

    # -- what a model wrote -------------------------------------------------------------------------------------------------

    def _decode(self, result: Any, style: Mapping[str, Any], form: str, tag: bool = False) -> list[Any]:
        if style["kind"] == "calls":
            pairs = [next(iter(call.items())) for call in result]
            return [{name: json.loads(given) if isinstance(given, str) else given} for name, given in pairs]
        if style["kind"] == "tags":
            return [{call["name"]: dict(call["arguments"].items())} for call in self._tagged(result)]
        decode, form = self.handlers.default_decode_ast_prompting, self._named("ReturnFormat", form)
        return decode(result, form) if self.version == "v3" else decode(result, form, tag)

    def _steps_calls(self, step: Any, style: Mapping[str, Any]) -> list[str]:
        """The calls of one step as strings; empty where there are none or they cannot be read."""
        try:
            if style["kind"] == "calls":
                calls = self.handlers.convert_to_function_call(step)
            elif style["kind"] == "tags":
                pairs = [{call["name"]: call["arguments"]} for call in self._tagged(step)]
                calls = self.handlers.convert_to_function_call(pairs)
            else:
                calls = self.handlers.default_decode_execute_prompting(step)
        except Exception:
            return []
        return [] if self.executor.is_empty_execute_response(calls) else calls

    def _tagged(self, text: str) -> list[Any]:
        """`<tool_call>` blocks as the handler of Qwen's function calling reads them."""
        found: list[Any] = []
        for inside in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL):
            try:
                found.append(json.loads(inside))
            except ValueError:
                if self.version == "v3":  # one block that is no JSON takes the others with it
                    return []
        if any(not isinstance(call, dict) for call in found):
            if self.version == "v3":
                return []
            raise NotDecoded("a call is no JSON object")
        return found

    # -- conversations ------------------------------------------------------------------------------------------------------

    def prompts(self, category: str, function_calling: bool) -> list[dict[str, Any]]:
        """The questions as the benchmark's own handler of Qwen3 asks them: turns of messages, and the tools of FC mode."""
        return [
            self._prompt(copy.deepcopy(entry), category, function_calling) for entry in self._asked(category)
        ]

    def _prompt(self, entry: dict[str, Any], category: str, function_calling: bool) -> dict[str, Any]:
        functions, turns, held_out = entry["function"], entry["question"], entry.get("missed_function", {})
        if self.version == "v3":
            functions = self.handlers.func_doc_language_specific_pre_processing(functions, category)
        if not function_calling:
            about = category if self.version == "v3" else entry["id"]
            turns[0] = self.handlers.system_prompt_pre_processing_chat_model(turns[0], functions, about)
        texts = importlib.import_module("bfcl_eval.constants.default_prompts")
        template = texts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING
        for turn, added in held_out.items():
            turns[int(turn)] = [{"role": "user", "content": template.format(functions=added)}]
        return {"id": entry["id"], "turns": turns, "functions": functions if function_calling else []}

    def step_limit(self) -> int:
        """Steps that a turn may take; one more ends the whole item."""
        return importlib.import_module("bfcl_eval.constants.default_prompts").MAXIMUM_STEP_LIMIT

    def open(self, session: str, category: str, index: int) -> None:
        """Starts an item's tools, apart from those of every other session."""
        self.sessions[session] = self.entries(category)[index]

    def calls_of(self, step: Any, style: Mapping[str, Any]) -> list[str]:
        """The calls of one step as strings; empty where there are none or they cannot be read: then the turn is over."""
        return self._steps_calls(step, style)

    def run_call(self, session: str, call: str) -> str:
        """What one call returns, as the text that the model is shown."""
        entry = self.sessions[session]
        safe = rebuilt(call, self._methods(tuple(entry["involved_classes"])))
        if safe == NO_TOOL:
            return f"Error during execution: name {call.split('(')[0]!r} is not defined"
        try:
            with time_limit(self.seconds):
                results, _ = self.executor.execute_multi_turn_func_call(
                    [safe],
                    entry["initial_config"],
                    entry["involved_classes"],
                    f"{SESSION}_{session}_",
                    entry["id"],
                    long_context="long_context" in entry["id"],
                )
                return results[0]
        except ItemTimeout:
            return f"Error during execution: stopped after {self.seconds:g} s"

    def reference_calls(self, category: str, index: int) -> list[list[dict[str, Any]]]:
        """The reference calls of every turn, as `{name: {parameter: value}}`."""
        methods = self._methods(tuple(self.entries(category)[index]["involved_classes"]))
        turns = self.references(category)[index]["ground_truth"]
        return [[named_arguments(call, methods) for call in turn] for turn in turns]

    def close(self, session: str) -> None:
        """Ends a session and forgets its tools."""
        self.sessions.pop(session, None)
        self._forget_instances(f"{SESSION}_{session}_")

    # -- data and tools -----------------------------------------------------------------------------------------------------

    def _entries(self, category: str) -> list[dict[str, Any]]:
        if self.version == "v3":
            return self._lines(self.config.PROMPT_PATH / f"BFCL_v3_{category}.json")
        return self.utils.load_dataset_entry(
            category, include_prereq=False, include_language_specific_hint=False
        )

    def _references(self, category: str) -> list[dict[str, Any]]:
        if self.version == "v3":
            return self._lines(self.config.POSSIBLE_ANSWER_PATH / f"BFCL_v3_{category}.json")
        return self.utils.load_ground_truth_entry(category)

    def _asked(self, category: str) -> list[dict[str, Any]]:
        """Entries with the functions that a model is shown."""
        if self.version == "v4":
            return self.utils.load_dataset_entry(category, include_prereq=False)
        return [self._with_functions(copy.deepcopy(entry)) for entry in self.entries(category)]

    def _with_functions(self, entry: dict[str, Any]) -> dict[str, Any]:
        if "involved_classes" not in entry:
            return entry
        folder, files = self.config.MULTI_TURN_FUNC_DOC_PATH, self.mapping.MULTI_TURN_FUNC_DOC_FILE_MAPPING
        functions = [
            f for name in entry["involved_classes"] for f in self.utils.load_file(folder / files[name])
        ]
        late: dict[str, list[Any]] = {}
        for turn, names in entry.get("missed_function", {}).items():
            late[turn] = [f for name in names for f in functions if f["name"] == name]
            functions = [f for f in functions if f["name"] not in names]
        return {**entry, "function": functions, "missed_function": late}

    def _lines(self, path: Any) -> list[dict[str, Any]]:
        return self.utils.load_file(path, sort_by_id=True)

    def _methods(self, classes: tuple[str, ...]) -> dict[str, list[str]]:
        """Public methods of the classes, to the names of their parameters."""
        modules = self.executor.CLASS_FILE_PATH_MAPPING
        return {name: given for one in classes for name, given in _public_methods(modules[one], one).items()}

    def _forget_instances(self, prefix: str = MODEL) -> None:
        """Drops the tools' state, which `bfcl-eval` keeps among a module's globals for ever."""
        for name in [n for n in vars(self.executor) if n.startswith(prefix) and n.endswith("_instance")]:
            delattr(self.executor, name)

    def _named(self, kind: str, value: str) -> Any:
        """A language or format as this version spells it: v4's enumerations, v3's words."""
        if self.version == "v4":
            return getattr(importlib.import_module("bfcl_eval.constants.enums"), kind)(value)
        return {"python": "Python", "java": "Java", "javascript": "JavaScript"}[value]


def _replace_eval(handlers: Any) -> None:
    """Puts `arithmetic` in the place of the decoder's `eval`; all else stays the benchmark's."""
    original = handlers.resolve_ast_by_type

    def resolve_ast_by_type(value: ast.AST) -> Any:
        if isinstance(value, ast.BinOp):
            return arithmetic(value)
        if isinstance(value, ast.Lambda):
            raise NotDecoded("a lambda is not evaluated")
        return original(value)

    handlers.resolve_ast_by_type = resolve_ast_by_type


@cache
def _public_methods(module: str, name: str) -> dict[str, list[str]]:
    kind = getattr(importlib.import_module(module), name)
    found = inspect.getmembers(kind, predicate=inspect.isfunction)
    return {
        method: list(inspect.signature(function).parameters)[1:]
        for method, function in found
        if not method.startswith("_")
    }


def _line(error: Any) -> str:
    text = "; ".join(map(str, error)) if isinstance(error, list) else str(error)
    return " ".join(text.split())[:400]


def main() -> None:
    """Answers requests `{"call": name, "arguments": {...}}` until stdin ends."""
    folder, version, seconds = sys.argv[1:4]
    sys.path.insert(0, folder)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the tools print goes to stderr
    builtins.input = lambda *_: ""  # no tool may wait for a keyboard
    benchmark = Benchmark(version, float(seconds))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(benchmark, request["call"])(**request["arguments"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
