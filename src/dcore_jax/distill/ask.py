"""The protocol between stages and pipeline: a question for a model, its answer, and the rejection of an attempt.

A stage is a generator that yields questions and is sent answers; it never calls an engine. So it can be replayed from a
journal of answers, and thousands of samples can wait for engines at the same time.
"""

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from dcore_jax.calls.bounds import CallSyntaxError, check_text
from dcore_jax.engines.engine import FinishReason

Message = dict[str, Any]
ModelRole = Literal["model", "labeller"]

# Special tokens of chat templates, spelled out: a tokenizer would encode them as the real ones, in a prompt or a corpus.
_MARKUP = re.compile(r"<[|｜][\w▁]+[|｜]>|<(?:start|end)_of_turn>")


@dataclass(frozen=True)
class Ask:
    """A question for a model. Its `key` is unique among a sample's questions; the seed of its sampling derives from it."""

    stage: str  # label, decompose, reason
    # For the chat template; with `plain`, one message that is the whole prompt.
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()  # for the chat template
    subtask: int = 0
    attempt: int = 0
    plain: bool = False  # without the chat template
    role: ModelRole = "model"

    @property
    def key(self) -> str:
        """`<stage>/<subtask>/<attempt>`."""
        return f"{self.stage}/{self.subtask}/{self.attempt}"


class Answer(NamedTuple):
    """A model's answer, without its stop token."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int


T = TypeVar("T")
# A stage yields the questions that can be asked at the same time, is sent their answers in the same order, returns its result.
Stage = Generator[tuple[Ask, ...], tuple[Answer, ...], T]


class Rejected(Exception):
    """The rejection of an attempt at a sample: the stage, one of a few fixed reasons, and the model's text."""

    def __init__(self, stage: str, reason: str, text: str = ""):
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason, self.text = stage, reason, text


def request_seed(seed: int, sample_id: str, key: str) -> int:
    """The seed of a question's sampling, in [0, 2**63); it does not depend on when or in what order questions are asked."""
    digest = hashlib.sha256(f"{seed}/{sample_id}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def find_flaw(text: str) -> str:
    """Why a text can be neither part of a prompt nor learned from, as one of a few fixed reasons; empty where it can."""
    try:
        check_text(text)
    except CallSyntaxError:
        return "a lone surrogate"
    return "a special token spelled out" if _MARKUP.search(text) else ""


def require_ended(stage: str, answer: Answer) -> None:
    """Raises Rejected unless the model ended its answer itself."""
    if answer.finish_reason == "overlong":
        raise Rejected(stage, "the prompt is longer than the engine's longest sequence")
    if answer.finish_reason != "stop":
        raise Rejected(stage, "cut off at the token limit", answer.text)
