"""Whether a run's reward can be reached at all: each prompt's reference, rendered as a turn and scored by the run's own reward.

A notation, a template or a format rule that do not fit together otherwise show only as a reward that never rises.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dcore_jax.calls import render_calls
from dcore_jax.data.chat_template import as_chat_template, render_chat
from dcore_jax.data.files import Malformed
from dcore_jax.data.record import Message, Rejections
from dcore_jax.errors import UserError
from dcore_jax.rewards import RewardInput, RewardMix
from dcore_jax.rewards.mix import PresetReward
from dcore_jax.rl.prompts import Prompt

_THOUGHT, _REPLY = "one step.", "No tool serves this."
_REFUSED = 0.5  # share of prompts whose top cannot be reached, from which on the run is refused rather than the prompts


@dataclass(frozen=True)
class _Shortfall:
    """The best that a prompt's reference earns, below the top."""

    reward: str
    earned: float
    top: float
    part: str  # the part that is lowest
    text: str


def reachable_prompts(
    prompts: Sequence[Prompt], tokenizer: Any, reward: RewardMix, rejections: Rejections
) -> list[Prompt]:
    """The prompts whose reference reaches the top of every preset in the reward; the others go to `rejections`.

    Raises:
      UserError: half of the prompts or more cannot be reached: the run would learn the wrong thing.
    """
    kept: list[Prompt] = []
    missed: list[tuple[Prompt, _Shortfall]] = []
    for prompt in prompts:
        shortfall = _shortfall(prompt, tokenizer, reward)
        if shortfall is None:
            kept.append(prompt)
        else:
            missed.append((prompt, shortfall))
    if missed and len(missed) >= _REFUSED * len(prompts):
        prompt, first = missed[0]
        raise UserError(
            f"the reference of {len(missed)} of {len(prompts)} prompts, rendered and scored, misses the top of the reward; first "
            f"{prompt.question.origin}: {first.reward} gives {first.earned:g} of {first.top:g} (lowest part: {first.part}) for "
            f"{first.text!r:.200} with calls in {prompt.question.call_format}; {_advice(first)}"
        )
    for prompt, first in missed:
        rejections.add(
            f"a reference that earns {first.earned:g} of {first.top:g} from {first.reward} when it is rendered and scored",
            prompt.question.origin,
        )
    return kept


def reference_turns(prompt: Prompt, tokenizer: Any) -> Iterator[str]:
    """The prompt's reference as a whole turn, as the chat template writes it: with a thought, its calls, and a reply where one is
    expected. Several where a thought may be written in several ways.
    """
    question = prompt.question
    for turn in _messages(prompt):
        try:
            whole = render_chat(tokenizer, [*question.messages, turn], question.tools)
        except Malformed:
            continue
        if whole.startswith(prompt.text):
            yield prompt.opening + _before_end(
                whole[len(prompt.text) :], as_chat_template(tokenizer).tokenizer
            )


def _messages(prompt: Prompt) -> Iterator[Message]:
    question = prompt.question
    structured = (
        bool(question.tools) and bool(question.reference) and question.call_format in ("qwen", "json")
    )
    expects_reply = not question.reference if question.expects_reply is None else question.expects_reply
    reply = _REPLY if expects_reply else ""
    if expects_reply and question.call_format == "tags":
        reply = f"<response>{_REPLY}</response>"
    if structured:
        calls = [
            {
                "id": f"call{i:05}",
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for i, call in enumerate(question.reference)
        ]
        yield {"role": "assistant", "content": reply, "reasoning_content": _THOUGHT, "tool_calls": calls}
        thought = f"<think>\n{_THOUGHT}\n</think>\n\n"
        yield {"role": "assistant", "content": thought + reply, "tool_calls": calls}
        return
    calls_text = render_calls(question.reference, question.call_format) if question.reference else ""
    answer = "\n".join(filter(None, (calls_text, reply)))
    for gap in ("\n\n", "\n"):
        yield {"role": "assistant", "content": f"<think>\n{_THOUGHT}\n</think>{gap}{answer}"}


def _before_end(text: str, tokenizer: Any) -> str:
    """The text before the token that ends the turn."""
    ends = [at for token in tokenizer.all_special_tokens if (at := text.find(token)) >= 0]
    return text[: min(ends)] if ends else text.rstrip("\n")


def _shortfall(prompt: Prompt, tokenizer: Any, reward: RewardMix) -> _Shortfall | None:
    """None where some rendering of the reference reaches the top of every preset."""
    question = prompt.question
    best: _Shortfall | None = None
    for text in reference_turns(prompt, tokenizer):
        given = RewardInput(
            text,
            question.reference,
            question.call_format,
            question.expects_reply,
            question.messages,
            question.tools,
        )
        worst = _worst(given, reward)
        if worst is None:
            return None
        if best is None or worst.earned > best.earned:
            best = worst
    return best or _Shortfall(str(reward), 0.0, 0.0, "none", "a turn that the template does not render")


def _worst(given: RewardInput, reward: RewardMix) -> _Shortfall | None:
    for _, function, _ in reward.rewards:
        if not isinstance(function, PresetReward):
            continue
        scored, (_, top) = function(given), function.range(given)
        if scored.total < top - 1e-6:
            part = min(scored.parts, key=lambda name: scored.parts[name])
            return _Shortfall(function.name, scored.total, top, part, given.response)
    return None


def _advice(first: _Shortfall) -> str:
    if first.reward == "toolrl" and first.part == "format":
        return "ToolRL's rule wants one line break after </think>, the template writes two: choose --reward toolrl_any_space"
    if "</think>" not in first.text:
        return "the template has no place for a thought: choose a model whose template has one, or a reward of your own"
    return "choose another --reward or --reward.call-format"
