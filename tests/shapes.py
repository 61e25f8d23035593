"""The shapes of docs/data.md: one row of each, in our own wording, with what becomes of it, stated by hand.

`learned` are the texts of the loss tokens under a template with Qwen3's behaviour, `plain` those under a ChatML template that
writes contents only: a turn whose calls are in `tool_calls` is not learned there, and is counted.
"""

import json
from dataclasses import dataclass, field
from typing import Any

END = "<|im_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"  # what Qwen3's template writes of a last turn without a thought
NO_CALL_PLACE = "the template renders the turn as nothing"
REPORT = "a report on tool results, which makes no call (`--reports` takes it)"
NO_TOOLS = "no tools are offered"
TALK = "words without a call that neither refuse nor ask"

ASKED = "When is high water in Ostend?"
TIDES = '{"high": "14:20"}'
TOLD = "High water is at 14:20."
OSTEND = ("tide", {"harbour": "Ostend"})
VEERE = ("tide", {"harbour": "Veere"})
PARAMETERS = {"type": "object", "properties": {"harbour": {"type": "string"}}, "required": ["harbour"]}
BARE_TOOL = {"name": "tide", "description": "High water at a harbour.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": BARE_TOOL}
FLAT_TOOL = {"name": "tide", "description": "High water.", "parameters": {"harbour": {"type": "str"}}}

USER = {"role": "user", "content": ASKED}
ARGUMENTS = {"harbour": "Ostend"}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": ARGUMENTS}}
RESULT = {"role": "tool", "content": TIDES}
ANSWER = {"role": "assistant", "content": TOLD}

QWEN = '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Ostend"}}\n</tool_call>'
TAGS = '<tool_call>\n{"name": "tide", "parameters": {"harbour": "Ostend"}}\n</tool_call>'
PYTHON = '[tide(harbour="Ostend")]'
JSON = '{"name": "tide", "arguments": {"harbour": "Ostend"}}'
GLAIVE = """<functioncall> {"name": "tide", "arguments": '{"harbour": "Ostend"}'}"""
THOUGHT = "<think>\nThe tide tool knows.\n</think>\n\n"
TAGGED = f"<think> The tide tool knows. </think>\n{TAGS}"
TAGGED_REPLY = "<think> No tool knows. </think>\n<response> I cannot tell. </response>"
HERMES_SYSTEM = (
    "You call functions. Their signatures are between <tools></tools> tags.\n"
    f"<tools>\n{json.dumps(TOOL)}\n</tools>\n"
    'Write each call as <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
)
TOOLRL_SYSTEM = (
    "You help sailors and may use tools.\n\n**Available Tools**\nYou may use these:\n"
    f"1. Name: tide\nDescription: High water at a harbour.\nParameters: {json.dumps(FLAT_TOOL['parameters'])}\n"
    "\n**Steps for Each Turn**\nThink, then call or answer.\n\n**Output Format**\n"
    '<think> ... </think>\n<tool_call>\n{"name": "...", "parameters": {"...": "..."}}\n</tool_call>\n'
    "<response> ... </response>"
)
TOOLRL_DIALOGUE = f"**Dialogue Records History**\n<user> {ASKED} </user>\n"
PYTHON_SYSTEM = (
    f"You may call functions. This is a list of functions in JSON format: {json.dumps([BARE_TOOL])}\n"
    "Put it in the format of [func_name1(params_name1=params_value1), func_name2(params)]."
)


@dataclass(frozen=True)
class Shape:
    """A row and what becomes of it."""

    name: str
    fields: str
    row: dict[str, Any]
    records: int = 1  # for SFT
    refused: str = ""  # why it is none, where `records` is 0
    learned: tuple[str, ...] = ()
    plain: tuple[str, ...] | None = None  # None: as `learned`, without the empty thought
    plain_left_out: tuple[str, ...] = ()
    # Of each RL prompt: the calls of its reference, and the notation in which its responses are scored.
    prompts: tuple[tuple[tuple[tuple[str, dict[str, Any]], ...], str], ...] = ()
    prompts_left_out: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()  # their kinds
    seeds_left_out: tuple[str, ...] = ()
    shown: bool = field(default=True)  # whether it has a line of its own in docs/data.md

    @property
    def plain_learned(self) -> tuple[str, ...]:
        if self.plain is not None:
            return self.plain
        return tuple(text.removeprefix(NO_THOUGHT) for text in self.learned)


def _calls(*calls: tuple[str, dict[str, Any]]) -> tuple[tuple[str, dict[str, Any]], ...]:
    return calls


def _said(text: str) -> str:
    """A turn without a thought, as Qwen3's template writes it after the last question."""
    return NO_THOUGHT + text + END


CALLED = _said(QWEN)
REPORTED = _said(TOLD)
# What a conversation of a call in `tool_calls`, its result and a report becomes, whatever the dialect.
STRUCTURED: dict[str, Any] = {
    "learned": (CALLED, REPORTED),
    "plain": (TOLD + END,),
    "plain_left_out": (NO_CALL_PLACE,),
    "prompts": ((_calls(OSTEND), "qwen"),),
    "prompts_left_out": (REPORT,),
    "seeds": ("sequential", "report"),
}


def _in_text(written: str, notation: str, **other: Any) -> dict[str, Any]:
    """The same with the call in the content."""
    return {
        **STRUCTURED,
        "learned": (_said(written), REPORTED),
        "plain": None,
        "plain_left_out": (),
        "prompts": ((_calls(OSTEND), notation),),
        **other,
    }


def _chat(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [USER, *turns], **fields}


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _spoken(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


SHAPES: tuple[Shape, ...] = (
    Shape(
        "OpenAI messages",
        "`messages` with `tool_calls`, `tools`",
        _chat(
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {**RESULT, "tool_call_id": "c1"},
            ANSWER,
            tools=[TOOL],
        ),
        **STRUCTURED,
    ),
    Shape(
        "OpenAI messages, as the API gives them",
        "the same, `arguments` as JSON text, `content` null",
        _chat(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**CALL, "function": {"name": "tide", "arguments": json.dumps(ARGUMENTS)}}],
            },
            {**RESULT, "tool_call_id": "c1"},
            ANSWER,
            tools=json.dumps([TOOL]),
        ),
        **STRUCTURED,
    ),
    Shape(
        "older OpenAI messages",
        "`messages` with `function_call`, `functions`",
        _chat(
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "tide", "arguments": json.dumps(ARGUMENTS)},
            },
            {"role": "function", "name": "tide", "content": TIDES},
            ANSWER,
            functions=[BARE_TOOL],
        ),
        **STRUCTURED,
    ),
    Shape(
        "role `developer`",
        "`messages` that start with one",
        {"messages": [{"role": "developer", "content": "Be brief."}, USER, ANSWER], "tools": [TOOL]},
        learned=(REPORTED,),
        prompts=((_calls(), "qwen"),),
        seeds_left_out=(TALK,),
    ),
    Shape(
        "content in parts",
        '`content` as `[{"type": "text", "text": ...}]`',
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "When is high water "},
                        {"type": "text", "text": "in Ostend?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "In which month?"}]},
            ],
            "tools": [TOOL],
        },
        learned=(_said("In which month?"),),
        prompts=((_calls(), "qwen"),),
        seeds=("irrelevant",),
    ),
    Shape(
        "messages, calls as text: Qwen and Hermes",
        "`messages` with `<tool_call>` blocks in `content`, `tools`",
        _chat(_assistant(QWEN), RESULT, ANSWER, tools=[TOOL]),
        **_in_text(QWEN, "qwen"),
    ),
    Shape(
        "messages, calls as text: ToolRL's tags",
        'the same with `"parameters"`',
        _chat(_assistant(TAGGED), RESULT, ANSWER, tools=[TOOL]),
        **_in_text(
            TAGS,
            "qwen",
            learned=(f"<think>\n The tide tool knows. \n</think>\n\n{TAGS}{END}", REPORTED),
            plain=(TAGGED + END, TOLD + END),
        ),
    ),
    Shape(
        "messages, calls as text: a Python list",
        '`messages` with `[f(a="x")]`',
        _chat(_assistant(THOUGHT + PYTHON), RESULT, ANSWER, tools=[TOOL]),
        **_in_text(PYTHON, "qwen", learned=(THOUGHT + PYTHON + END, REPORTED)),
    ),
    Shape(
        "messages, calls as text: bare JSON",
        "`messages` with a JSON object or list of calls",
        _chat(_assistant(JSON), RESULT, ANSWER, tools=[TOOL]),
        **_in_text(JSON, "qwen"),
    ),
    Shape(
        "ShareGPT",
        "`conversations` of `from` (`human`, `gpt`, `system`, `tool`) and `value`",
        {
            "conversations": _spoken(("human", ASKED), ("gpt", PYTHON), ("tool", TIDES), ("gpt", TOLD)),
            "system": PYTHON_SYSTEM,
        },
        **_in_text(PYTHON, "python"),
    ),
    Shape(
        "ShareGPT with calls (LLaMA-Factory)",
        "`conversations` with `function_call` and `observation`, `tools` as JSON text",
        {
            "conversations": _spoken(
                ("human", ASKED), ("function_call", JSON), ("observation", TIDES), ("gpt", TOLD)
            ),
            "tools": json.dumps([BARE_TOOL]),
        },
        **STRUCTURED,
    ),
    Shape(
        "Hermes",
        "`conversations` whose system turn lists the tools",
        {
            "conversations": _spoken(
                ("system", HERMES_SYSTEM),
                ("human", ASKED),
                ("gpt", QWEN),
                ("tool", f"<tool_response>\n{TIDES}\n</tool_response>"),
                ("gpt", TOLD),
            )
        },
        **_in_text(QWEN, "qwen"),
    ),
    Shape(
        "Hermes with its `tools` column",
        "the same and `tools`, which are not shown twice",
        {
            "conversations": _spoken(
                ("system", HERMES_SYSTEM),
                ("human", ASKED),
                ("gpt", QWEN),
                ("tool", f"<tool_response>\n{TIDES}\n</tool_response>"),
                ("gpt", TOLD),
            ),
            "tools": json.dumps([TOOL]),
            "id": "our-1",
            "category": "sea",
            "task": "Tides",
        },
        **_in_text(QWEN, "qwen"),
    ),
    Shape(
        "glaive",
        "`system` with the functions, `chat` of `USER:`, `ASSISTANT:`, `FUNCTION RESPONSE:`",
        {
            "system": "SYSTEM: You are a harbour clerk with access to the following functions. Use them if required -\n"
            + json.dumps(BARE_TOOL, indent=4),
            "chat": f"USER: {ASKED}\n\n\nASSISTANT: {GLAIVE} <|endoftext|>\n\n\n"
            f"FUNCTION RESPONSE: {TIDES}\n\n\nASSISTANT: {TOLD} <|endoftext|>",
        },
        **STRUCTURED,
    ),
    Shape(
        "ToolACE",
        "`system` with the tools and the rule, `conversations` with Python lists",
        {
            "system": PYTHON_SYSTEM,
            "conversations": _spoken(
                ("user", "High water in Ostend and Veere?"),
                ("assistant", '[tide(harbour="Ostend"), tide(harbour="Veere")]'),
                (
                    "tool",
                    '[{"name": "tide", "results": {"high": "14:20"}}, {"name": "tide", "results": {"high": "15:05"}}]',
                ),
                ("assistant", "At 14:20 and at 15:05."),
            ),
        },
        learned=(_said('[tide(harbour="Ostend"), tide(harbour="Veere")]'), _said("At 14:20 and at 15:05.")),
        prompts=((_calls(OSTEND, VEERE), "python"),),
        prompts_left_out=(REPORT,),
        seeds=("parallel", "report"),
    ),
    Shape(
        "xLAM",
        "`query`, `tools` and `answers`, both JSON text",
        {"id": 7, "query": ASKED, "tools": json.dumps([FLAT_TOOL]), "answers": f"[{JSON}]"},
        learned=(CALLED,),
        plain=(),
        plain_left_out=(NO_CALL_PLACE,),
        prompts=((_calls(OSTEND), "qwen"),),
        seeds=("sequential",),
    ),
    Shape(
        "Hammer, irrelevance",
        "xLAM's with empty `answers`",
        {"query": "Book me a cabin.", "tools": json.dumps([FLAT_TOOL]), "answers": "[]"},
        records=0,
        refused="an RL prompt (query, answers), which holds no answer to learn from",
        prompts=((_calls(), "qwen"),),
        seeds=("irrelevant",),
    ),
    Shape(
        "APIGen-MT",
        "`system`, `tools` as JSON text, `conversations` with `function_call` and `observation`",
        {
            "system": "Serve sailors only.",
            "tools": json.dumps([BARE_TOOL]),
            "conversations": _spoken(
                ("human", "Hello!"),
                ("gpt", "Which harbour is it about?"),
                ("human", ASKED),
                ("function_call", JSON),
                ("observation", TIDES),
                ("gpt", TOLD),
            ),
        },
        **{
            **STRUCTURED,
            "learned": (_said("Which harbour is it about?"), CALLED, REPORTED),
            "plain": (f"Which harbour is it about?{END}", TOLD + END),
            "prompts": ((_calls(), "qwen"), (_calls(OSTEND), "qwen")),
            "seeds": ("irrelevant", "sequential", "report"),
        },
    ),
    Shape(
        "ToolRL, SFT",
        "`instruction` with the tools, `input` with the dialogue, `output` in tags",
        {"instruction": TOOLRL_SYSTEM, "input": TOOLRL_DIALOGUE, "output": TAGGED},
        learned=(f"<think>\n The tide tool knows. \n</think>\n\n{TAGS}{END}",),
        plain=(TAGGED + END,),
        prompts=((_calls(OSTEND), "tags"),),
        seeds=("sequential",),
    ),
    Shape(
        "ToolRL, RL",
        "`prompt` (system, user), `reward_model.ground_truth` in tags",
        {
            "data_source": "rlla",
            "prompt": [
                {"role": "system", "content": TOOLRL_SYSTEM},
                {"role": "user", "content": TOOLRL_DIALOGUE},
            ],
            "reward_model": {"style": "rule", "ground_truth": TAGGED},
            "extra_info": {"index": 3},
        },
        records=0,
        refused="an RL prompt (prompt, reward_model), which holds no answer to learn from",
        prompts=((_calls(OSTEND), "tags"),),
        seeds=("sequential",),
    ),
    Shape(
        "D-CORE, SFT",
        "`conversations` of several samples, `single_conv_last_idx`",
        {
            "conversations": [
                {"role": "system", "content": PYTHON_SYSTEM},
                USER,
                _assistant(THOUGHT + PYTHON),
                {"role": "system", "content": PYTHON_SYSTEM},
                USER,
                _assistant(PYTHON),
                RESULT,
                _assistant("<think>\nRead.\n</think>\n\n" + TOLD),
            ],
            "single_conv_last_idx": [2, 7],
        },
        records=2,
        learned=(THOUGHT + PYTHON + END, "<think>\nRead.\n</think>\n\n" + TOLD + END),
        prompts=((_calls(OSTEND), "python"),),
        prompts_left_out=(REPORT,),
        seeds=("sequential", "report"),
    ),
    Shape(
        "D-CORE, RL",
        "`prompt`, `reward_model.ground_truth` as a Python list",
        {
            "data_source": "sea",
            "prompt": [{"role": "system", "content": PYTHON_SYSTEM}, USER],
            "reward_model": {"style": "rule", "ground_truth": "[tide(harbour='Ostend')]"},
        },
        records=0,
        refused="an RL prompt (prompt, reward_model), which holds no answer to learn from",
        prompts=((_calls(OSTEND), "python"),),
        seeds=("sequential",),
    ),
    Shape(
        "D-CORE, RL, no call",
        "the same with `[]`",
        {
            "prompt": [
                {"role": "system", "content": PYTHON_SYSTEM},
                {"role": "user", "content": "Book me a cabin."},
            ],
            "reward_model": {"style": "rule", "ground_truth": "[]"},
        },
        records=0,
        refused="an RL prompt (prompt, reward_model), which holds no answer to learn from",
        prompts=((_calls(), "python"),),
        seeds=("irrelevant",),
    ),
    Shape(
        "verl",
        "`prompt`, `reward_model.ground_truth` as a list of calls or its JSON text, `tools`",
        {"prompt": [USER], "reward_model": {"ground_truth": f"[{JSON}]"}, "tools": json.dumps([TOOL])},
        records=0,
        refused="an RL prompt (prompt, reward_model), which holds no answer to learn from",
        prompts=((_calls(OSTEND), "qwen"),),
        seeds=("sequential",),
    ),
    Shape(
        "TRL, messages",
        "`prompt`, `completion`, both messages; `tools`",
        {
            "prompt": [USER],
            "completion": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "tools": [TOOL],
        },
        learned=(CALLED,),
        plain=(),
        plain_left_out=(NO_CALL_PLACE,),
        prompts=((_calls(OSTEND), "qwen"),),
        seeds=("sequential",),
    ),
    Shape(
        "TRL, text",
        "`prompt`, `completion`, both text",
        {"prompt": "What is slack water?", "completion": "The time at which the tide turns."},
        learned=(_said("The time at which the tide turns."),),
        prompts=((_calls(), "qwen"),),
        seeds_left_out=(NO_TOOLS,),
    ),
    Shape(
        "TRL, preferences",
        "`prompt`, `chosen`; `rejected` is not read",
        {"prompt": [USER], "chosen": [USER, _assistant(QWEN)], "rejected": [USER, ANSWER], "tools": [TOOL]},
        learned=(CALLED,),
        prompts=((_calls(OSTEND), "qwen"),),
        seeds=("sequential",),
    ),
    Shape(
        "Alpaca",
        "`instruction`, `output`",
        {"instruction": "What is slack water?", "output": "The time at which the tide turns."},
        learned=(_said("The time at which the tide turns."),),
        prompts=((_calls(), "qwen"),),
        seeds_left_out=(NO_TOOLS,),
    ),
    Shape(
        "Alpaca with input",
        "`instruction`, `input`, `output`",
        {"instruction": "Translate into Dutch.", "input": "high water", "output": "hoogwater"},
        learned=(_said("hoogwater"),),
        prompts=((_calls(), "qwen"),),
        seeds_left_out=(NO_TOOLS,),
    ),
    Shape(
        "Alpaca with history (LLaMA-Factory)",
        "the same and `history`, pairs of texts",
        {
            "instruction": "And low water?",
            "input": "",
            "output": "laagwater",
            "history": [["High water in Dutch?", "hoogwater"]],
            "system": "Translate.",
        },
        learned=(_said("hoogwater"), _said("laagwater")),
        prompts=((_calls(), "qwen"), (_calls(), "qwen")),
        seeds_left_out=(NO_TOOLS, NO_TOOLS),
    ),
    Shape(
        "API-Bank",
        "`system` with the tools, `user` with the dialogue, `answer` with calls",
        {
            "system": TOOLRL_SYSTEM,
            "user": TOOLRL_DIALOGUE,
            "answer": [{"name": "tide", "parameters": ARGUMENTS}],
        },
        records=0,
        refused="an RL prompt (system, user, answer), which holds no answer to learn from",
        prompts=((_calls(OSTEND), "tags"),),
        seeds=("sequential",),
    ),
    Shape(
        "messages with a reference",
        "`messages` up to the turn, `reference` (calls; `[]`: none expected), `tools`",
        {"messages": [USER], "reference": [{"name": "tide", "arguments": ARGUMENTS}], "tools": [TOOL]},
        records=0,
        refused="an RL prompt (messages with reference), which holds no answer to learn from",
        prompts=((_calls(OSTEND), "qwen"),),
        seeds=("sequential",),
    ),
    Shape(
        "our own seeds",
        "`query`, `reference`, `tools`, optionally `policy`, `history`, `responses`, `kind`, `answer`, `task`",
        {
            "query": ASKED,
            "reference": [{"name": "tide", "arguments": ARGUMENTS}],
            "tools": [TOOL],
            "policy": "Be brief.",
            "responses": [TIDES],
        },
        records=0,
        refused="an RL prompt (seed), which holds no answer to learn from",
        prompts=((_calls(OSTEND), "qwen"),),
        seeds=("sequential",),
    ),
)
