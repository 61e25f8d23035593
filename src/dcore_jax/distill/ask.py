"""What the stages say to the pipeline: a question for a model, its answer, and the end of an attempt.

A stage never talks to an engine. It yields questions and is sent answers, so that it can be run again from a journal
of answers, and so that thousands of samples can wait for engines side by side.
"""

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from dcore_jax.calls.bounds import CallSyntaxError, check_text
from dcore_jax.engines.engine import FinishReason

Message = dict[str, Any]
Speaker = Literal["model", "labeller"]

# Special tokens of chat templates, spelled out: in a prompt or a corpus a tokenizer would read them as the real ones.
_MARKUP = re.compile(r"<[|｜][\w▁]+[|｜]>|<(?:start|end)_of_turn>")


@dataclass(frozen=True)
class Ask:
    """One question. Its `key` names it among all questions of a sample; the seed of its sampling derives from that."""

    stage: str  # label, decompose, reason
    messages: tuple[
        Message, ...
    ]  # for the chat template, or with `plain` one message that is the whole prompt
    tools: tuple[dict[str, Any], ...] = ()  # for the chat template
    subtask: int = 0
    attempt: int = 0
    plain: bool = False  # no chat template
    of: Speaker = "model"

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.subtask}/{self.attempt}"


class Answer(NamedTuple):
    """What a model said, without the token that ended it."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int


T = TypeVar("T")
# A stage: yields the questions that can be asked side by side, is sent their answers in the same order, returns its result.
Stage = Generator[tuple[Ask, ...], tuple[Answer, ...], T]


class Rejected(Exception):
    """An attempt at a sample that came to its end: the stage, one of a few fixed reasons, and what the model said."""

    def __init__(self, stage: str, reason: str, text: str = ""):
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason, self.text = stage, reason, text


def request_seed(seed: int, sample_id: str, key: str) -> int:
    """The seed of a question's sampling, in [0, 2**63): the same whenever and in whatever order it is asked."""
    digest = hashlib.sha256(f"{seed}/{sample_id}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def flaw_of(text: str) -> str:
    """Why a text can be neither asked nor learned from, as one of a few fixed reasons; empty where it can."""
    try:
        check_text(text)
    except CallSyntaxError:
        return "a lone surrogate"
    return "a special token spelled out" if _MARKUP.search(text) else ""


def require_ended(stage: str, answer: Answer) -> None:
    """Raises Rejected unless the model came to an end by itself."""
    if answer.finish_reason == "overlong":
        raise Rejected(stage, "the prompt is longer than the engine's longest sequence")
    if answer.finish_reason != "stop":
        raise Rejected(stage, "cut off at the token limit", answer.text)
