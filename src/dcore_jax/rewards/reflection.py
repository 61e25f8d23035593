"""Reflection words in a thought, and when a thought is lazy (D-CORE section 2.3 and appendix A.2.2)."""

import re
from collections.abc import Sequence
from functools import lru_cache

from dcore_jax.errors import check_choice

# The words that the release's lazy-reasoning script counts, and those that its reward logs during RL.
REFLECTION_WORDS = ("wait", "but", "alternatively", "however")
RELEASE_REWARD_WORDS = ("wait", "but", "however", "alternatively", "perhaps", "because")


def count_reflections(
    thought: str, *, words: Sequence[str] = REFLECTION_WORDS, matching: str = "word"
) -> int:
    """How often `words` occur in `thought`, in upper or lower case.

    Args:
      thought: the text between `<think>` and `</think>`.
      words: in lower case.
      matching: `word`: as whole words, so that "attribute" holds no "but". `substring`: anywhere, as the release
        counts.

    Raises:
      UserError: an unknown matching.
    """
    check_choice("matching of reflection words", matching, ("word", "substring"))
    if matching == "word":
        return len(_whole_words(tuple(words)).findall(thought))
    thought = thought.lower()
    return sum(thought.count(word) for word in words)


def is_lazy(reflections: int, tokens: int, *, correct: bool, preset: str = "paper") -> bool:
    """Whether a thought of `tokens` tokens with that many reflections is lazy.

    `paper`: more than 300 tokens and more than 3 reflections. `release`: more than 200 tokens and at least 3
    reflections (counted as substrings there), and the answer is wrong.

    Raises:
      UserError: an unknown preset.

    Source:
      D-CORE, 2602.02160, section 2.3 and appendix A.2.2; the release's script.
    """
    check_choice("preset of lazy thoughts", preset, ("paper", "release"))
    if preset == "paper":
        return tokens > 300 and reflections > 3
    return tokens > 200 and reflections >= 3 and not correct


@lru_cache
def _whole_words(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
