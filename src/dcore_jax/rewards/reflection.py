"""Reflection words in a thought, and when a thought is lazy (D-CORE section 2.3 and appendix A.2.2)."""

import re
from collections.abc import Sequence
from functools import lru_cache

from dcore_jax.errors import UserError

# The words by which the release's lazy-reasoning script counts, and those its reward logs during RL.
REFLECTION_WORDS = ("wait", "but", "alternatively", "however")
RELEASE_REWARD_WORDS = ("wait", "but", "however", "alternatively", "perhaps", "because")


def count_reflections(
    thought: str, *, words: Sequence[str] = REFLECTION_WORDS, matching: str = "word"
) -> int:
    """How often `words` occur in `thought`, in any case.

    `word`: as whole words, so that "attribute" holds no "but". `substring`: anywhere, as the release counts.
    """
    if matching == "word":
        return len(_whole_words(tuple(words)).findall(thought))
    if matching == "substring":
        thought = thought.lower()
        return sum(thought.count(word) for word in words)
    raise UserError(f"unknown matching {matching!r} of reflection words; choose word or substring")


def is_lazy(reflections: int, tokens: int, *, correct: bool, preset: str = "paper") -> bool:
    """Whether a thought of `tokens` tokens with that many reflections is lazy.

    paper: more than 300 tokens and more than 3 reflections. release: more than 200 tokens and at least 3
    reflections (counted as substrings there), and the answer is wrong.
    """
    if preset == "paper":
        return tokens > 300 and reflections > 3
    if preset == "release":
        return tokens > 200 and reflections >= 3 and not correct
    raise UserError(f"unknown preset {preset!r} of lazy thoughts; choose paper or release")


@lru_cache
def _whole_words(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
