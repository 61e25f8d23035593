"""ToolRL's rlla mix (arXiv 2504.13958), both SFT records and RL prompts.

SFT: `{"instruction", "input", "output"}`. RL: `{"prompt": [system, user], "reward_model": {"ground_truth"}}`. Both
hold the same three texts: the tools as numbered text under "Available Tools", the dialogue so far between `<user>`,
`<tool_call>`, `<obs>` and `<response>` tags, and the next turn in the `tags` format. Only that turn makes a sample:
the earlier ones are other records' turns.
"""

import re
from typing import Any

from dcore_jax.calls import parse_response
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.tool_schemas import openai_tools, relax_required
from dcore_jax.distill.seeds.conversation import Conversation, ParsedMessage, exchanges_of

_TOOLS = re.compile(r"\*\*Available Tools\*\*(.*?)(?=\n\*\*Steps for Each Turn\*\*|\Z)", re.DOTALL)
_TOOL = re.compile(r"^\d+\. Name: ", re.MULTILINE)
_FIELDS = re.compile(r"(.*?)\nDescription: (.*)\nParameters: (\{.*\})\s*", re.DOTALL)
_HEADING = "**Dialogue Records History**"
_BLOCK = re.compile(r"<(user|obs)>(.*?)</\1>", re.DOTALL)


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """The conversation of an rlla record of either form. Raises `Malformed` with the reason."""
    instruction, dialogue, turn = _texts(row)
    policy, tools = split_instruction(instruction)
    messages = [*dialogue_messages(dialogue), _assistant(turn)]
    calls = [call for message in messages for call in message.calls]
    return Conversation(
        source="rlla",
        origin=origin,
        policy=policy,
        tools=relax_required(tools, calls),
        exchanges=exchanges_of(messages),
        last_only=True,
    )


def split_instruction(instruction: str) -> tuple[str, tuple[dict[str, Any], ...]]:
    """`(policy, tools)`: the text before the list of tools, and the tools. The text after them is about the format.

    Raises:
      Malformed: a tool that cannot be read.
    """
    section = _TOOLS.search(instruction)
    if section is None:
        return instruction.strip(), ()
    tools = []
    for text in _TOOL.split(section[1])[1:]:
        fields = _FIELDS.fullmatch(text)
        if fields is None:
            raise Malformed("a tool without name, description and parameters")
        parameters = decode_json(fields[3], "a tool whose parameters are not JSON")
        tools.append({"name": fields[1].strip(), "description": fields[2].strip(), "parameters": parameters})
    return instruction[: section.start()].strip(), openai_tools(tools)


def dialogue_messages(dialogue: str) -> list[ParsedMessage]:
    """The messages of a dialogue: users and observations between tags, and the assistant's turns between those."""
    text = dialogue.strip().removeprefix(_HEADING)
    messages: list[ParsedMessage] = []
    at = 0
    for block in _BLOCK.finditer(text):
        if between := text[at : block.start()].strip():
            messages.append(_assistant(between))
        messages.append(ParsedMessage("user" if block[1] == "user" else "tool", block[2].strip()))
        at = block.end()
    if between := text[at:].strip():
        messages.append(_assistant(between))
    return messages


def _assistant(text: str) -> ParsedMessage:
    parsed = parse_response(text, "tags")
    if parsed.calls is None:
        raise Malformed(f"an assistant turn that cannot be read: {parsed.error}")
    return ParsedMessage("assistant", parsed.reply, parsed.calls)


def _texts(row: dict[str, Any]) -> tuple[str, str, str]:
    if {"instruction", "input", "output"} <= row.keys():
        texts = [row["instruction"], row["input"], row["output"]]
    else:
        prompt, model = row.get("prompt"), row.get("reward_model")
        if not isinstance(prompt, list) or not isinstance(model, dict):
            raise Malformed("an rlla record needs instruction, input, output, or prompt and reward_model")
        by_role = {
            message.get("role"): message.get("content") for message in prompt if isinstance(message, dict)
        }
        texts = [by_role.get("system"), by_role.get("user"), model.get("ground_truth")]
    if not all(isinstance(text, str) for text in texts):
        raise Malformed("instruction, input and output must be text")
    return texts[0], texts[1], texts[2]
