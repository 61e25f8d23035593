"""Reflection words and lazy thoughts, by hand and against the figures published for Qwen3-8B."""

import json
import re

import pytest

from dcore_jax.errors import UserError
from dcore_jax.rewards import RELEASE_REWARD_WORDS, count_reflections, is_lazy


@pytest.mark.parametrize(
    ("thought", "words", "substrings"),
    [
        ("", 0, 0),
        ("The attribute of the button is waiting.", 0, 3),
        ("Wait, wait. WAIT!", 3, 3),
        ("But however, alternatively: but.", 4, 4),
        ("wait_time and rebut", 0, 2),
        ("(wait)\nbut—however", 3, 3),
    ],
)
def test_a_reflection_is_a_whole_word_unless_the_releases_counting_is_asked_for(thought, words, substrings):
    assert count_reflections(thought) == words
    assert count_reflections(thought, matching="substring") == substrings


def test_the_words_of_the_releases_reward_can_be_counted_too():
    thought = "Perhaps, because of that. Wait."
    assert count_reflections(thought) == 1
    assert count_reflections(thought, words=RELEASE_REWARD_WORDS) == 3


@pytest.mark.parametrize(
    ("reflections", "tokens", "correct", "paper", "release"),
    [
        (4, 301, False, True, True),
        (4, 301, True, True, False),
        (3, 301, False, False, True),
        (4, 300, False, False, True),
        (3, 201, False, False, True),
        (3, 200, False, False, False),
        (2, 1000, False, False, False),
    ],
)
def test_lazy_thoughts_by_both_criteria(reflections, tokens, correct, paper, release):
    assert is_lazy(reflections, tokens, correct=correct, preset="paper") == paper
    assert is_lazy(reflections, tokens, correct=correct, preset="release") == release


def test_unknown_criteria_are_named():
    with pytest.raises(UserError, match="choose one of word, substring"):
        count_reflections("", matching="regex")
    with pytest.raises(UserError, match="choose one of paper, release"):
        is_lazy(1, 1, correct=True, preset="dcore")


@pytest.mark.parametrize(
    ("categories", "thoughts", "published"),
    [(("parallel", "live_parallel"), 216, 3.7), (("irrelevance", "live_irrelevance"), 1122, 9.1)],
)
def test_the_releases_criterion_gives_its_published_ratio_for_qwen3_8b(
    real_data, categories, thoughts, published
):
    """Tokens are counted as words and punctuation marks: close enough for a threshold of 200."""

    def lines(kind, category):
        path = real_data / "dcore_release" / "Qwen3-8B" / kind / f"BFCL_v3_{category}_{kind}.json"
        return [json.loads(line) for line in path.read_text().splitlines()]

    lazy = []
    for category in categories:
        wrong = {item["id"] for item in lines("score", category)[1:]}
        for item in lines("result", category):
            thought = item["reasoning_content"]
            reflections = count_reflections(thought, matching="substring")
            tokens = len(re.findall(r"\w+|[^\w\s]", thought))
            lazy.append(is_lazy(reflections, tokens, correct=item["id"] not in wrong, preset="release"))
    assert len(lazy) == thoughts
    assert 100 * sum(lazy) / len(lazy) == pytest.approx(published, abs=0.3)
