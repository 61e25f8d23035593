"""Readers: files of tool-use conversations as `Record`s, with every rejected line counted.

The fields of a line decide which of four kinds it is, so one file may mix them (docs/data.md shows each):

- chat: `messages`, optionally `tools` and `category`;
- ToolRL SFT (arXiv 2504.13958): `instruction`, `input`, `output`;
- D-CORE SFT (arXiv 2602.02160): `conversations`, each message as `role/content` or `from/value`, optionally
  several conversations packed in one line with `single_conv_last_idx` naming where each ends;
- RL prompts (`prompt`, `reward_model`), which are rejected with a reason of their own: they hold no answer to learn from.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dcore_jax.calls.bounds import MAX_VALUES, CallSyntaxError, check_text, check_value
from dcore_jax.data.files import Malformed, decode_json, file_rows, local_file
from dcore_jax.errors import UserError

Message = dict[str, Any]
LossTurns = Literal["every", "last"]

ROLES = ("system", "user", "assistant", "tool")
# The D-CORE release's names of the roles in `from/value` messages.
_RELEASE_ROLES = {"system": "system", "human": "user", "gpt": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class Record:
    """One conversation of a file."""

    messages: tuple[
        Message, ...
    ]  # OpenAI-style: `role`, `content`, optionally `tool_calls` with `arguments` as dicts
    tools: tuple[dict[str, Any], ...] | None  # OpenAI function schemas
    category: str
    origin: str  # "file:line" for JSON, "file:row" for Parquet, both counted from 1
    # The assistant turns that become samples; `last` for records whose history is trained on in others (the D-CORE corpora).
    loss_turns: LossTurns = "every"
    turn_weights: tuple[float, ...] | None = None  # one in [0, 1] for each message; None: all 1


@dataclass
class Rejections:
    """Rejected records, counted by reason with the first origin of each; `strict` raises at the first one instead."""

    strict: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, origin: str) -> None:
        """Counts one rejection. Raises `UserError`, naming origin and reason, when `strict`."""
        if self.strict:
            raise UserError(
                f"{origin}: {reason}; fix the record, or read without strict to skip and count it"
            )
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, origin)

    @property
    def total(self) -> int:
        """All rejections."""
        return sum(self.counts.values())

    def lines(self, limit: int = 20) -> list[str]:
        """One line per reason, the most frequent first: `12 x no assistant turn (first: train.jsonl:7)`."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{count} x {reason} (first: {self.examples[reason]})" for reason, count in ordered[:limit]]
        rest = ordered[limit:]
        return lines + ([f"{sum(n for _, n in rest)} x {len(rest)} other reasons"] if rest else [])


def read_records(
    paths: Iterable[str | Path] | str | Path, *, strict: bool = False
) -> tuple[list[Record], Rejections]:
    """Reads JSONL, JSON arrays and Parquet, local or `hf://datasets/<owner>/<name>/<file>`.

    Returns:
      The records in file order, and the rejections.

    Raises:
      UserError: a file that is missing, of another extension, or unreadable as a whole; with `strict`, the first
        rejected record.
    """
    rejections = Rejections(strict=strict)
    records: list[Record] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        name, local = str(path), local_file(str(path))
        for origin, row in file_rows(name, local):
            try:
                if isinstance(row, Malformed):
                    raise row
                records.extend(parse_record(row, origin=origin, category=local.stem))
            except Malformed as reason:
                rejections.add(str(reason), origin)
    return records, rejections


def parse_record(row: Any, *, origin: str, category: str = "default") -> list[Record]:
    """The records of one row of a file: several only for a packed D-CORE line.

    Args:
      origin: where the row is from, as `file:line`.
      category: used where the row has no `category` (`read_records` passes the file's stem).

    Raises:
      Malformed: with the reason.
    """
    if not isinstance(row, dict):
        raise Malformed(f"a record must be a JSON object, not {type(row).__name__}")
    row = {
        key: value for key, value in row.items() if value is not None
    }  # Parquet fills absent fields with null
    named = row.get("category", category)
    if not isinstance(named, str):
        raise Malformed(f"category must be a string, not {type(named).__name__}")
    _check_texts([named], "category")
    loss_turns = row.get("loss_turns", "last" if "conversations" in row else "every")
    if loss_turns not in ("every", "last"):
        raise Malformed(f"loss_turns must be 'every' or 'last', not {loss_turns!r}")

    if "messages" in row:
        conversations = [_messages(row["messages"])]
    elif "conversations" in row:
        conversations = _dcore_conversations(row)
    elif {"instruction", "input", "output"} <= row.keys():
        conversations = [_toolrl_messages(row)]
    elif {"prompt", "reward_model"} <= row.keys():
        raise Malformed("an RL prompt (prompt, reward_model), which holds no answer to learn from")
    else:
        fields = " ".join(", ".join(sorted(map(str, row))).split())
        fields = fields.encode(errors="backslashreplace").decode()  # lone surrogates cannot be printed
        raise Malformed(f"unknown format with fields {fields[:80] or '(none)'}")
    if row.get("history"):
        raise Malformed("a history beside the record's own turns, which is not supported")
    conversations = [_with_system(row.get("system"), messages) for messages in conversations]
    tools = _tools(row.get("tools"))
    return [Record(tuple(messages), tools, named, origin, loss_turns) for messages in conversations]


# --- the formats ---


def _with_system(text: Any, messages: list[Message]) -> list[Message]:
    """The conversation with the record's `system` field as its first turn."""
    if text in (None, ""):
        return messages
    if messages[0]["role"] == "system":
        raise Malformed("a system field beside a system turn")
    return [_message({"role": "system", "content": text}), *messages]


def _messages(value: Any) -> list[Message]:
    value = _from_json_string(value, "messages")
    if not isinstance(value, list):
        raise Malformed(f"messages must be a list, not {type(value).__name__}")
    if not value:
        raise Malformed("empty messages")
    messages = [_message(message) for message in value]
    if not any(message["role"] == "assistant" for message in messages):
        raise Malformed("no assistant turn")
    return messages


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise Malformed(f"a message must be an object, not {type(value).__name__}")
    message = {key: item for key, item in value.items() if item is not None}
    if message.pop("weight", 1) != 1:
        raise Malformed("per-message loss weights, which are not supported")
    role = message.get("role")
    if role not in ROLES:
        raise Malformed(f"unknown role {str(role)[:40]!r}")
    if "tool_calls" in message:
        calls = [_tool_call(call) for call in _list(message.pop("tool_calls"), "tool_calls")]
        if calls:  # Parquet fills an absent list with an empty one
            message["tool_calls"] = calls
    _check_texts(message.values(), f"a {role} message")
    content = message.setdefault("content", "" if "tool_calls" in message else None)
    if not isinstance(content, str):
        raise Malformed(f"content of a {role} message must be text, not {type(content).__name__}")
    if not isinstance(message.get("reasoning_content", ""), str):
        raise Malformed("reasoning_content must be text")
    if role == "assistant" and not content.strip() and "tool_calls" not in message:
        raise Malformed("an assistant turn without content or tool calls")
    return message


def _tool_call(value: Any) -> dict[str, Any]:
    """OpenAI's `{"function": {"name", "arguments"}}` from that or the bare inner object; arguments become a dict."""
    if not isinstance(value, dict):
        raise Malformed(f"a tool call must be an object, not {type(value).__name__}")
    value = {key: item for key, item in value.items() if item is not None}
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Malformed("a tool call without a name")
    arguments = _from_json_string(function.get("arguments", {}), "tool call arguments")
    if not isinstance(arguments, dict):
        raise Malformed(f"tool call arguments must be an object, not {type(arguments).__name__}")
    _check_values(arguments, "tool call arguments")
    kept = {key: item for key, item in value.items() if key not in ("function", "name", "arguments")}
    _check_texts([name, *kept.values()], "a tool call")
    return {**kept, "type": "function", "function": {"name": name, "arguments": arguments}}


def _toolrl_messages(row: dict[str, Any]) -> list[Message]:
    """The messages of ToolRL's SFT triple: instruction (system), input (user), output (assistant)."""
    for name in ("instruction", "input", "output"):
        if not isinstance(row[name], str):
            raise Malformed(f"{name} must be text, not {type(row[name]).__name__}")
    if not row["input"].strip():
        raise Malformed("empty input")
    if not row["output"].strip():
        raise Malformed("empty output")
    system = [{"role": "system", "content": row["instruction"]}] if row["instruction"].strip() else []
    user, assistant = (
        {"role": "user", "content": row["input"]},
        {"role": "assistant", "content": row["output"]},
    )
    return [_message(message) for message in (*system, user, assistant)]


def _dcore_conversations(row: dict[str, Any]) -> list[list[Message]]:
    """The conversations of a D-CORE line; `single_conv_last_idx` lists the last message of each."""
    turns = _list(row["conversations"], "conversations")
    if not turns:
        raise Malformed("empty conversations")
    ends = _list(row.get("single_conv_last_idx", [len(turns) - 1]), "single_conv_last_idx")
    if not ends or any(type(end) is not int for end in ends) or ends != sorted(set(ends)):
        raise Malformed("single_conv_last_idx must be a rising list of integers")
    if ends[0] < 0 or ends[-1] != len(turns) - 1:
        raise Malformed("single_conv_last_idx must end at the last message")
    starts = [0, *(end + 1 for end in ends[:-1])]
    conversations = [
        _messages([_dcore_message(turn) for turn in turns[start : end + 1]])
        for start, end in zip(starts, ends)
    ]
    if any(messages[-1]["role"] != "assistant" for messages in conversations):
        raise Malformed("a conversation that does not end with an assistant turn")
    return conversations


def _dcore_message(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn  # _message names the type
    role = turn.get("role")
    if role is None:
        role = _RELEASE_ROLES.get(str(turn.get("from")), turn.get("from"))
    content = turn.get("content")
    kept = {key: item for key, item in turn.items() if key not in ("from", "value")}
    return {**kept, "role": role, "content": turn.get("value") if content is None else content}


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    if value is None:
        return None
    tools = _list(value, "tools")
    if any(not isinstance(tool, dict) for tool in tools):
        raise Malformed("tools must be a list of objects")
    _check_values(tools, "tools", limit=sys.maxsize)
    return tuple(tools) or None


def _list(value: Any, name: str) -> list[Any]:
    value = _from_json_string(value, name)
    if not isinstance(value, list):
        raise Malformed(f"{name} must be a list, not {type(value).__name__}")
    return value


def _from_json_string(value: Any, name: str) -> Any:
    return decode_json(value, f"{name} is a string that is not JSON")


# --- values that no template or tokenizer can write ---


def _check_texts(values: Iterable[Any], where: str) -> None:
    """Raises `Malformed` for a lone surrogate in any text among the values."""
    try:
        for value in values:
            if isinstance(value, str):
                check_text(value)
    except CallSyntaxError as error:
        raise Malformed(f"{error.reason} in {where}") from None


def _check_values(value: Any, where: str, limit: int = MAX_VALUES) -> None:
    """Raises `Malformed` for values that no call format can hold: not finite, too deep, too many, lone surrogates."""
    try:
        check_value(value, limit)
    except CallSyntaxError as error:
        raise Malformed(f"{where}: {error.reason}") from None
