"""Prompts of Qwen3 as `bfcl-eval`'s own handlers write them, and as the player's history.

The handlers write the chat template out in Python, and the two versions differ: v3 leaves out the end of a message with tool
results and the calls of earlier steps in function-calling mode, and shows no earlier thoughts; v4 shows the thoughts and calls
since the last question. A thought before the last question is dropped by both.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from dcore_jax.calls import ParsedResponse
from dcore_jax.player import Turn
from dcore_jax.player.session import Message, Tools
from dcore_jax.weights.stop_tokens import end_of_turn_ids

_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
_NO_THOUGHT = "<think>\n\n</think>\n\n"
_START = "<|im_start|>"
_TAGGED = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def render_qwen3(
    messages: Sequence[Message], functions: Sequence[Any], version: str, *, thinking: bool = True
) -> str:
    """The prompt up to the assistant's next turn.

    Args:
      messages: of roles system, user, assistant and tool; an assistant's may have `reasoning_content` and `tool_calls`.
      functions: shown as tools in function-calling mode; empty in prompt mode, where the system message has them.
      version: whose handler: `v3` or `v4`.
      thinking: False: the empty thought of Qwen3's no-think mode is written.
    """
    parts = [_head(messages, functions)]
    last_question = _last_question(messages)
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "user" or (role == "system" and index):
            parts.append(f"<|im_start|>{role}\n{content}<|im_end|>\n")
        elif role == "assistant":
            parts.append(
                _assistant(
                    message, version, since_question=index > last_question, last=index == len(messages) - 1
                )
            )
        elif role == "tool":
            first = not index or messages[index - 1]["role"] != "tool"
            last = index == len(messages) - 1 or messages[index + 1]["role"] != "tool"
            parts.append("<|im_start|>user" if first else "")
            parts.append(f"\n<tool_response>\n{content}\n</tool_response>")
            parts.append("<|im_end|>\n" if last and version != "v3" else "")
    parts.append("<|im_start|>assistant\n" + ("" if thinking else _NO_THOUGHT))
    return "".join(parts)


def split_response(text: str) -> tuple[str, str]:
    """A response without its thought, and the thought, as the handlers part them."""
    if "</think>" not in text:
        return text, ""
    before, *_, after = text.split("</think>")
    return after.lstrip("\n"), before.rstrip("\n").split("<think>")[-1].lstrip("\n")


def assistant_message(text: str, version: str, function_calling: bool) -> Message:
    """A response as a message of the history."""
    answer, thought = split_response(text)
    message: Message = {"role": "assistant", "content": answer}
    calls = _tagged_calls(text) if function_calling else []
    if calls:
        message |= {"content": "", "tool_calls": calls}
    if version != "v3":
        message["reasoning_content"] = thought
    return message


@dataclass(frozen=True)
class HandlerHistory:
    """The player's history that renders every prompt as the benchmark's handler does; see player.history.History."""

    tokenizer: Any
    version: str
    function_calling: bool
    thinking: bool = True

    def closes(self, token: int) -> bool:
        """Whether the id ends a turn."""
        return token in end_of_turn_ids(self.tokenizer) or token in self.tokenizer.all_special_ids

    def first(self, messages: Sequence[Message], tools: Tools) -> tuple[int, ...]:
        """Ids of a whole prompt."""
        text = render_qwen3(messages, tools or (), self.version, thinking=self.thinking)
        if _START not in self.tokenizer.get_added_vocab():
            return _ids(self.tokenizer, text)
        # A control token splits a text before anything is tokenised: messages that were there before need no second look.
        parts = text.split(_START)[1:]
        return tuple(chain.from_iterable(_ids(self.tokenizer, _START + part) for part in parts))

    def next(
        self,
        so_far: Sequence[int],
        messages: Sequence[Message],
        turn: Turn,
        new: Sequence[Message],
        tools: Tools,
    ) -> tuple[int, ...]:
        """Ids of the next whole prompt."""
        return self.first([*messages, self.message(turn), *new], tools)

    def opened(self, prompt: Sequence[int]) -> str:
        """The prompts open no thought."""
        return ""

    def message(self, turn: Turn) -> Message:
        """The turn as the handler keeps it."""
        return assistant_message(turn.text, self.version, self.function_calling)

    def read(self, text: str, tools: Tools) -> ParsedResponse:
        """Sessions of the benchmark read calls by its decoders."""
        return ParsedResponse(None, (), text.strip())


@lru_cache(maxsize=4096)
def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _head(messages: Sequence[Message], functions: Sequence[Any]) -> str:
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if functions:
        tools = "".join(f"\n{json.dumps(function)}" for function in functions)
        asked = "" if system is None else f"{system}\n\n"
        return f"<|im_start|>system\n{asked}{_TOOLS_BEFORE}{tools}{_TOOLS_AFTER}"
    return "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"


def _last_question(messages: Sequence[Message]) -> int:
    for index in range(len(messages) - 1, -1, -1):
        content = messages[index]["content"]
        response = content.startswith("<tool_response>") and content.endswith("</tool_response>")
        if messages[index]["role"] == "user" and not response:
            return index
    return len(messages) - 1


def _assistant(message: Message, version: str, *, since_question: bool, last: bool) -> str:
    content, thought = message["content"], message.get("reasoning_content") or ""
    if not thought and "</think>" in content:
        content, thought = split_response(content)
    text = content
    if since_question and (last or thought):
        stripped = thought.strip("\n")
        text = f"<think>\n{stripped}\n</think>\n\n" + content.lstrip("\n")
    if version != "v3":
        text += _calls_text(message.get("tool_calls", ()), content)
    return f"<|im_start|>assistant\n{text}<|im_end|>\n"


def _calls_text(calls: Sequence[Any], content: str) -> str:
    parts = []
    for call in calls:
        # As the handler has it: a call that equals the first begins no new line.
        parts.append("\n" if content or call != calls[0] else "")
        given = call["arguments"]
        shown = given if isinstance(given, str) else json.dumps(given)
        parts.append(
            '<tool_call>\n{"name": "' + call["name"] + '", "arguments": ' + shown + "}\n</tool_call>"
        )
    return "".join(parts)


def _tagged_calls(text: str) -> list[Any]:
    """`<tool_call>` blocks that hold a call; the others stay out of the history."""
    found = []
    for inside in _TAGGED.findall(text):
        try:
            call = json.loads(inside)
        except ValueError:
            continue
        if isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call:
            found.append(call)
    return found
