"""The shapes that rows of tool-use data come in, told apart by their fields: each to `Record`s. docs/data.md shows every one.

A row with an answer is a conversation to learn from; a row that states what the answer should do (`reference`, `reward_model`,
`answers`, `answer`) is a prompt with a reference. The first shape of `_SHAPES` whose test holds reads the row.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from dcore_jax.calls import Call, as_calls, instructed_notation
from dcore_jax.data.conversations import conversations_of, glaive_conversation, glaive_tools
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.ground_truth import reference_of
from dcore_jax.data.messages import call_message, conversation, message_of, tool_call
from dcore_jax.data.record import LossTurns, Message, Record, Reference, check_texts, check_values
from dcore_jax.data.tool_schemas import openai_tools
from dcore_jax.errors import UserError

Row = dict[str, Any]
# Where data sets of judged answers say that this one is bad (TRL's KTO, LLaMA-Factory's).
_REFUSALS = ("label", "kto_tag")
# What a reader of a shape gives: messages, their weights, and a reference where the messages wait for an answer.
Found = tuple[list[Message], tuple[float, ...] | None, Reference | None]


def records_of(row: Any, *, origin: str, category: str) -> list[Record]:
    """The records of a row of any shape: several only for a packed D-CORE line. Raises `Malformed` with the reason."""
    if not isinstance(row, dict):
        raise Malformed(f"a record must be a JSON object, not {type(row).__name__}")
    row = {key: value for key, value in row.items() if value is not None}
    shape, read = _shape_of(row)
    named = row.get("category", row.get("data_source", category) if "reward_model" in row else category)
    if not isinstance(named, str):
        raise Malformed(f"category must be a string, not {type(named).__name__}")
    check_texts([named], "category")
    loss_turns = row.get("loss_turns", "last" if "single_conv_last_idx" in row else "every")
    if any(row.get(key) in (False, 0) for key in _REFUSALS):
        raise Malformed("an answer that is marked as a bad one")
    if loss_turns not in ("every", "last"):
        raise Malformed(f"loss_turns must be 'every' or 'last', not {loss_turns!r}")
    row = _with_tools_of_messages(row)
    tools = _tools(row, shape)
    return [_record(row, found, tools, named, origin, loss_turns, shape) for found in read(row)]


def shape_of(row: Row) -> str:
    """The name of a row's shape. Raises `Malformed` for an unknown one."""
    return _shape_of({key: value for key, value in row.items() if value is not None})[0]


def _record(
    row: Row, found: Found, tools: Any, category: str, origin: str, loss_turns: LossTurns, shape: str
) -> Record:
    messages, weights, reference = found
    system = row.get("system") if shape not in ("glaive", "api_bank") else None
    if system not in (None, ""):
        if messages[0]["role"] == "system":
            raise Malformed("a system field beside a system turn")
        messages = [message_of("system", system), *messages]
        weights = None if weights is None else (1.0, *weights)
    if reference is None and not any(message["role"] == "assistant" for message in messages):
        raise Malformed("no assistant turn")
    if reference is not None and messages[-1]["role"] == "assistant":
        raise Malformed("messages that do not wait for the assistant")
    if tools and _offered_in_system(messages[0], tools):
        tools = None
    return Record(tuple(messages), tools, category, origin, loss_turns, weights, reference, shape)


# --- the shapes ---


def _messages(row: Row) -> list[Found]:
    found, weights = conversation(row["messages"], "messages")
    return [(found, weights, None)]


def _messages_with_reference(row: Row) -> list[Found]:
    found, _ = conversation(row["messages"], "messages")
    calls = _listed_calls(row["reference"], "reference")
    replies = row.get("expects_reply")
    if replies is not None and not isinstance(replies, bool):
        raise Malformed("expects_reply must be true or false")
    return [(found, None, Reference(calls, replies))]


def _seed(row: Row) -> list[Found]:
    """This library's own: `query`, `reference`, and optionally `policy`, `history`."""
    policy, history = row.get("policy") or "", row.get("history") or []
    before = conversation(history, "history")[0] if history else []
    if policy:
        before = [message_of("system", policy), *before]
    calls = _listed_calls(row["reference"], "reference")
    return [([*before, message_of("user", row["query"])], None, Reference(calls))]


def _toolrl(row: Row) -> list[Found]:
    """ToolRL's SFT triple (arXiv 2504.13958): instruction (system), input (user), output (assistant)."""
    for name in ("instruction", "input", "output"):
        if not isinstance(row[name], str):
            raise Malformed(f"{name} must be text, not {type(row[name]).__name__}")
        if name != "instruction" and not row[name].strip():
            raise Malformed(f"empty {name}")
    if row.get("history"):
        raise Malformed("a history beside a ToolRL dialogue, which holds its own")
    system = [message_of("system", row["instruction"])] if row["instruction"].strip() else []
    return [([*system, message_of("user", row["input"]), message_of("assistant", row["output"])], None, None)]


def _alpaca(row: Row) -> list[Found]:
    """Alpaca: instruction with an optional input (user), output (assistant), and LLaMA-Factory's `history` of pairs."""
    texts = [row["instruction"], row.get("input") or "", row["output"]]
    for name, text in zip(("instruction", "input", "output"), texts):
        if not isinstance(text, str):
            raise Malformed(f"{name} must be text, not {type(text).__name__}")
    if not texts[2].strip():
        raise Malformed("empty output")
    history: list[Message] = []
    pairs = decode_json(row.get("history") or [], "history is a string that is not JSON")
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Malformed("history must be a list of pairs of texts")
        history += [message_of("user", pair[0]), message_of("assistant", pair[1])]
    asked = "\n\n".join(text for text in texts[:2] if text.strip())
    if not asked:
        raise Malformed("empty instruction")
    return [([*history, message_of("user", asked), message_of("assistant", texts[2])], None, None)]


def _xlam(row: Row) -> list[Found]:
    """xLAM (arXiv 2406.18518) and Hammer: `query`, `tools`, and `answers`, which are calls; none where no tool fits."""
    calls = _listed_calls(row["answers"], "answers")
    asked = [message_of("user", row["query"])]
    return [([*asked, call_message(calls)], None, None) if calls else (asked, None, Reference(()))]


def _verl(row: Row) -> list[Found]:
    """RL rows of verl, ToolRL and D-CORE: `prompt`, and `reward_model.ground_truth` in any notation."""
    model = decode_json(row["reward_model"], "reward_model is a string that is not JSON")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    if truth is None:
        raise Malformed("reward_model.ground_truth is missing")
    return [(_prompt(row["prompt"]), None, reference_of(truth))]


def _trl(row: Row) -> list[Found]:
    """TRL: `prompt` with `completion`, or with `chosen` (of which `rejected` is not read); each a text or messages.

    LLaMA-Factory's preferences have their prompt in `conversations`, or in `instruction` and `input`.
    """
    name = "completion" if "completion" in row else "chosen"
    answer = [row[name]] if isinstance(row[name], dict) else row[name]
    turns = [message_of("assistant", answer)] if isinstance(answer, str) else conversation(answer, name)[0]
    if "instruction" in row and isinstance(answer, str):
        return _alpaca({**row, "output": answer})
    if "prompt" not in row and "conversations" not in row:
        if turns[0]["role"] == "assistant":
            raise Malformed("a chosen answer without its prompt")
        return [(turns, None, None)]
    prompt = _prompt(row["prompt"] if "prompt" in row else row["conversations"])
    if turns[: len(prompt)] == prompt:  # `chosen` may hold the prompt once more
        turns = turns[len(prompt) :]
    weights = (*(0.0 if message["role"] == "assistant" else 1.0 for message in prompt), *(1.0 for _ in turns))
    return [([*prompt, *turns], weights if 0.0 in weights else None, None)]


def _api_bank(row: Row) -> list[Found]:
    """API-Bank's items: `system` with the tools as text, `user` with the dialogue, `answer` with the calls: RL prompts only."""
    calls = _listed_calls(row["answer"], "answer")
    return [
        (
            [message_of("system", row["system"]), message_of("user", row["user"])],
            None,
            Reference(calls, None, "tags"),
        )
    ]


def _glaive(row: Row) -> list[Found]:
    return [(*glaive_conversation(row), None)]


def _conversations(row: Row) -> list[Found]:
    return [(messages, weights, None) for messages, weights in conversations_of(row)]


_TOOLRL_TAGS = ("<think>", "<tool_call>", "<response>")


def _is_toolrl(row: Row) -> bool:
    """Alpaca has the same fields; ToolRL's answers are in tags, its dialogues too."""
    asked, dialogue, answer = row["instruction"], row["input"], row["output"]
    if not (isinstance(asked, str) and isinstance(dialogue, str) and isinstance(answer, str)):
        return True  # its reader says what is wrong
    tagged = any(tag in answer for tag in _TOOLRL_TAGS)
    return tagged or "<user>" in dialogue or "**Available Tools**" in asked


_SHAPES: tuple[tuple[str, Callable[[Row], bool], Callable[[Row], list[Found]]], ...] = (
    ("messages with reference", lambda row: {"messages", "reference"} <= row.keys(), _messages_with_reference),
    ("messages", lambda row: "messages" in row, _messages),
    ("conversations", lambda row: "conversations" in row and "chosen" not in row, _conversations),
    ("seed", lambda row: {"query", "reference"} <= row.keys(), _seed),
    ("xlam", lambda row: {"query", "answers"} <= row.keys(), _xlam),
    ("verl", lambda row: {"prompt", "reward_model"} <= row.keys(), _verl),
    ("trl", lambda row: ("completion" in row and "prompt" in row) or "chosen" in row, _trl),
    ("glaive", lambda row: "chat" in row, _glaive),
    ("api_bank", lambda row: {"system", "user", "answer"} <= row.keys(), _api_bank),
    ("toolrl", lambda row: {"instruction", "input", "output"} <= row.keys() and _is_toolrl(row), _toolrl),
    ("alpaca", lambda row: {"instruction", "output"} <= row.keys(), _alpaca),
)  # fmt: skip


def _shape_of(row: Row) -> tuple[str, Callable[[Row], list[Found]]]:
    for shape, holds, read in _SHAPES:
        if holds(row):
            return shape, read
    fields = " ".join(", ".join(sorted(map(str, row))).split())
    fields = fields.encode(errors="backslashreplace").decode()  # lone surrogates cannot be printed
    raise Malformed(f"unknown format with fields {fields[:80] or '(none)'}")


# --- fields ---


def _prompt(value: Any) -> list[Message]:
    """A prompt: messages, their JSON text, or the text of the user."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [message_of("user", value)]
    return conversation(value, "prompt")[0]


def _listed_calls(value: Any, name: str) -> tuple[Call, ...]:
    """Calls from a list of objects with a name and `arguments` or `parameters`, or from its JSON text."""
    listed = decode_json(value, f"{name} is a string that is not JSON")
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        raise Malformed(f"{name} must be a list of calls")
    if any(isinstance(item, Call) for item in listed):
        return as_calls(listed)
    try:
        return as_calls([tool_call(item)["function"] for item in listed])
    except UserError as error:
        raise Malformed(str(error)) from None


def _tools(row: Row, shape: str) -> tuple[dict[str, Any], ...] | None:
    """OpenAI function schemas: as they are where the row has such, from `functions` or a data set's own dialect otherwise."""
    value = row.get("tools", row.get("functions"))
    if value is None:
        return glaive_tools(row) if shape == "glaive" else None
    if value == "":
        return None
    tools = value
    for _ in range(2):  # some programs write the JSON text as JSON once more
        tools = decode_json(tools, "tools is a string that is not JSON")
    if isinstance(tools, dict) and ("function" in tools or "name" in tools):
        tools = [tools]
    if not isinstance(tools, list):
        raise Malformed(f"tools must be a list, not {type(tools).__name__}")
    written = (
        tool if not _is_object_text(tool) else decode_json(tool, "a tool is no JSON") for tool in tools
    )
    tools = list(written)
    if any(not isinstance(tool, dict) for tool in tools):
        raise Malformed("tools must be a list of objects")
    check_values(tools, "tools", limit=sys.maxsize)
    if any("function" not in tool for tool in tools):
        return openai_tools(tools) or None
    return tuple(tools)


def _with_tools_of_messages(row: Row) -> Row:
    """The row with `tools` beside its messages, where they stand inside one of them. Raises `Malformed` for several."""
    name = next((name for name in ("messages", "conversations", "prompt") if name in row), "")
    with contextlib.suppress(Malformed):
        row = {**row, name: decode_json(row[name], "")} if name else row
    messages = row[name] if name and isinstance(row[name], list) else []
    inside = [
        message[key]
        for message in messages
        if isinstance(message, dict)
        for key in ("tools", "functions")
        if message.get(key) not in (None, "", [])
    ]
    if not inside:
        return row
    if any(tools != inside[0] for tools in inside) or row.get("tools", inside[0]) != inside[0]:
        raise Malformed("tools inside a message beside other tools")
    kept = [
        {key: value for key, value in message.items() if key not in ("tools", "functions")}
        if isinstance(message, dict)
        else message
        for message in messages
    ]
    return {**row, name: kept, "tools": inside[0]}


def _offered_in_system(first: Message, tools: tuple[dict[str, Any], ...]) -> bool:
    """Whether a system turn with instructions of its own already describes every tool: a template would do so once more."""
    text = first["content"] if first["role"] == "system" else ""
    names = [str(tool.get("function", tool).get("name")) for tool in tools]
    return instructed_notation(text) is not None and all(
        f'"{name}"' in text or f"'{name}'" in text for name in names
    )


def _is_object_text(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("{")
