"""Tool conversations drawn from a seed: every shape that a chat template tells apart, with awkward text in every place."""

import random
from typing import Any

_WORDS = (
    "tide", "harbour", "Übergabe", "café", "cafe\u0301", "北京", "天気", "дождь", "🌧️", "👩‍🔬", "12.5", "1e-9", "don't",
    "x_y", "<b>", "&amp;", "{", "}]", '"quoted"', "back\\slash", "tab\there", "line\nbreak", "two\n\nbreaks", "…", "½", 
    "\u00a0space", "a  b",
    "f(a=1)", "[list]", "null", "<|odd|>", "</tool>", "%20", "$HOME", "ﬁ", "Å", "Å",
)  # fmt: skip
_NAMES = ("weather", "book_room", "search", "mail.send", "sum", "lookup-id", "时间")
_KEYS = ("city", "days", "q", "名", "flag", "nested", "note")


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`{"messages", "tools"}`, OpenAI-style with arguments as objects; each ends with an assistant's turn."""
    return [_conversation(random.Random(f"{seed}:{i}")) for i in range(count)]


def _conversation(draw: random.Random) -> dict[str, Any]:
    tools = [_tool(draw, name) for name in draw.sample(_NAMES, draw.randint(0, 3))]
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": _text(draw)})
    for _ in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": _text(draw)})
        for _ in range(draw.randint(0, 2) if tools else 0):
            calls = [_call(draw, draw.choice(tools)["function"]["name"]) for _ in range(draw.randint(1, 3))]
            messages.append(_assistant(draw, "" if draw.random() < 0.6 else _text(draw), calls))
            messages += [
                {"role": "tool", "name": c["function"]["name"], "content": _result(draw)} for c in calls
            ]
        last = tools and draw.random() < 0.3
        calls = [_call(draw, tools[0]["function"]["name"])] if last else []
        messages.append(_assistant(draw, "" if calls else _text(draw), calls))
        if calls:  # the conversation ends with the call, or goes on with its result
            if draw.random() < 0.5:
                break
            messages.append({"role": "tool", "name": calls[0]["function"]["name"], "content": _result(draw)})
            messages.append(_assistant(draw, _text(draw), []))
    return {"messages": messages, "tools": tools}


def _assistant(draw: random.Random, content: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if draw.random() < 0.6:
        message["reasoning_content"] = _text(draw)
    if calls:
        message["tool_calls"] = calls
    return message


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(1, 12))).strip()


def _tool(draw: random.Random, name: str) -> dict[str, Any]:
    keys = draw.sample(_KEYS, draw.randint(0, 3))
    properties = {
        key: {"type": draw.choice(["string", "integer", "array"]), "description": _text(draw)} for key in keys
    }
    parameters = {"type": "object", "properties": properties, "required": keys[:1]}
    return {
        "type": "function",
        "function": {"name": name, "description": _text(draw), "parameters": parameters},
    }


def _call(draw: random.Random, name: str) -> dict[str, Any]:
    arguments = {key: _value(draw, 2) for key in draw.sample(_KEYS, draw.randint(0, 3))}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _result(draw: random.Random) -> str:
    return (
        draw.choice(['{"ok": true, "rows": []}', "", "[1, 2]", "not found: id 7"])
        if draw.random() < 0.5
        else _text(draw)
    )


def _value(draw: random.Random, depth: int) -> Any:
    kind = draw.randrange(8 if depth else 6)
    if kind == 6:
        return [_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    if kind == 7:
        return {key: _value(draw, depth - 1) for key in draw.sample(_KEYS, draw.randint(0, 2))}
    return (_text(draw), draw.randint(-99, 10**12), draw.uniform(-1, 1), None, draw.random() < 0.5, "")[kind]
