"""Regions of a response in three call formats, on texts a reader can check and on the ids a model samples."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.calls import CALL_FORMATS, Call, parse_response, render_calls
from dcore_jax.errors import UserError
from dcore_jax.regions import (
    PAPER_RULES,
    RELEASE_RULES,
    Region,
    RegionRules,
    TokenBytes,
    region_spans,
    response_regions,
    token_regions,
)
from qwen_tokenizer import byte_tokenizer, qwen_tokenizer

LETTER = {
    Region.OUTSIDE: ".",
    Region.FORMAT: "F",
    Region.NAME: "N",
    Region.PARAMETERS: "P",
    Region.THINKING: "T",
}
TAGS_ONLY = RegionRules(all_calls=True, punctuation_is_format=False)


def painted(text: str, call_format: str, rules: RegionRules = PAPER_RULES) -> str:
    """One letter for each byte of the text."""
    letters = ["."] * len(text.encode())
    for start, end, region in region_spans(text, call_format, rules=rules):
        letters[start:end] = LETTER[region] * (end - start)
    return "".join(letters)


# (format, rules, text, letters): the letters stand under the text, byte by byte; / is a line break.
TABLE = [
    (
        "python", PAPER_RULES,
        '<think>/go/</think>//[get(a="x)", b=[1, (2)]), g.h()]',
        'FFFFFFFFTTTFFFFFFFFFFFNNNFPPPPPPPPPPPPPPPPPPFFFNNNFFF',
    ),
    (
        "python", RELEASE_RULES,
        '<think>/go/</think>//[get(a="x)", b=[1, (2)]), g.h()]',
        'FFFFFFFTTTTFFFFFFFF...NNN.PPPPPPPPPPPPPPPPPP.........',
    ),
    (
        "python", PAPER_RULES,  # begins inside the thought; a quoted name; a space in a name; what follows
        'so/</think>["S (2)"(t=\'a\'), my tool(u="]")] ok',
        'TTTFFFFFFFFFFNNNNNFFPPPPPFFFNNNNNNNFPPPPPFF...',
    ),
    ("python", PAPER_RULES, '["Add "(a=1), \' \'(b=2), c (d=3)]', "FFNNNNFFPPPFFFFNFFPPPFFFNFFPPPFF"),  # spaces of quoted names
    ("python", PAPER_RULES, "I see [1] and f(x).", "..................."),
    ("python", PAPER_RULES, '[f(a="x', "FNFPPPP"),  # cut off
    ("python", PAPER_RULES, "<think>ab", "FFFFFFFTT"),
    (
        "tags", PAPER_RULES,
        '<think>t</think>/<tool_call>/{"name": "a b", "parameters": {"k": "}"}}/</tool_call>',
        'FFFFFFFTFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFNNNFFFFFFFFFFFFFFFFFPPPPPPPPPPFFFFFFFFFFFFFF',
    ),
    (
        "tags", RELEASE_RULES,
        '<think>t</think>/<tool_call>/{"name": "a b", "parameters": {"k": "}"}}/</tool_call>',
        'FFFFFFFTFFFFFFFF.FFFFFFFFFFF...........NNN.................PPPPPPPPPP..FFFFFFFFFFFF',
    ),
    (
        "tags", PAPER_RULES,  # two calls, keys in any order, a scalar, a reply
        '<tool_call>{"parameters": 5 ,"name":"f"}/{"name":"g"} x</tool_call><response>hi</response>',
        'FFFFFFFFFFFFFFFFFFFFFFFFFFPFFFFFFFFFFNFFFFFFFFFFFFNFFF.FFFFFFFFFFFFFFFFFFFFFF..FFFFFFFFFFF',
    ),
    (
        "tags", TAGS_ONLY,
        '<tool_call>{"parameters": 5 ,"name":"f"}/{"name":"g"} x</tool_call><response>hi</response>',
        'FFFFFFFFFFF...............P..........N............N....FFFFFFFFFFFFFFFFFFFFFF..FFFFFFFFFFF',
    ),
    (
        "tags", RELEASE_RULES,  # only the first call of the block
        '<tool_call>{"parameters": 5 ,"name":"f"}/{"name":"g"} x</tool_call><response>hi</response>',
        'FFFFFFFFFFF...............P..........N.................FFFFFFFFFFFFFFFFFFFFFF..FFFFFFFFFFF',
    ),
    (
        "qwen", PAPER_RULES,  # one block for each call; the second is cut off inside its arguments
        '<tool_call>/{"name": "f", "arguments": {}}/</tool_call>/<tool_call>/{"name":"g","arguments":{"a',
        'FFFFFFFFFFFFFFFFFFFFFFNFFFFFFFFFFFFFFFFPPFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFNFFFFFFFFFFFFFFPPP',
    ),
    ("qwen", PAPER_RULES, '{"name": "f"} </tool_call>', ".........................."),
]  # fmt: skip


@pytest.mark.parametrize(("call_format", "rules", "text", "letters"), TABLE)
def test_regions_are_where_a_reader_puts_them(call_format, rules, text, letters):
    text = text.replace("/", "\n").replace("<\n", "</")
    assert painted(text, call_format, rules) == letters


TEXT = st.text(max_size=80) | st.lists(
    st.sampled_from([
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "\n", " ", "[", "]", "(", ")",
        "{", "}", '"', "'", ",", ":", "=", "\\", '"name": ', '"arguments": ', '"parameters": ', "f", "héé", "1", "😀",
    ]),
    max_size=30,
).map("".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(TEXT, st.sampled_from(CALL_FORMATS), st.sampled_from([PAPER_RULES, RELEASE_RULES, TAGS_ONLY]))
def test_any_text_gives_sorted_disjoint_spans_inside_it(text, call_format, rules):
    end = 0
    for span in region_spans(text, call_format, rules=rules):
        assert end <= span.start < span.end and span.region is not Region.OUTSIDE
        end = span.end
    assert end <= len(text.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
CALLS = st.lists(
    st.builds(
        Call,
        st.from_regex(r"[a-zA-Z][a-zA-Z0-9_. -]{0,9}[a-z]", fullmatch=True),
        st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), JSON, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(CALLS, st.sampled_from(CALL_FORMATS), st.text("ab []{}()\"'\n", max_size=20))
def test_rendered_calls_are_found_one_by_one(calls, call_format, thought):
    text = f"<think>\n{thought}\n</think>\n\n{render_calls(calls, call_format)}"
    data = text.encode()
    spans = region_spans(text, call_format)
    names = [data[s.start : s.end].decode() for s in spans if s.region is Region.NAME]
    assert names == [call.name for call in calls]
    arguments = [data[s.start : s.end].decode() for s in spans if s.region is Region.PARAMETERS]
    if call_format == "python":
        rebuilt = [f"[f({inside})]" for inside in arguments]
        found = [parse_response(text, "python").calls[0].arguments for text in rebuilt]
        assert found == [call.arguments for call in calls if call.arguments]
    else:
        assert [json.loads(inside) for inside in arguments] == [call.arguments for call in calls]
    # Without the release's gaps every byte but the thought's surroundings is accounted for.
    assert all(spans[i].end == spans[i + 1].start for i in range(len(spans) - 1))


@pytest.mark.parametrize(
    "unit", ['[f(a="', "<tool_call>{", '"\\', "[[[(", "<think>", '{"name":"', "[a ", "'''"]
)
def test_hostile_texts_take_linear_time(unit):
    text = ("[f(" + unit * (65536 // len(unit)))[:65536]
    for call_format in CALL_FORMATS:
        for variant in (text, "<tool_call>{" + text, text[3:]):
            seconds = []
            while not seconds or (
                min(seconds) > 2.0 and len(seconds) < 3
            ):  # the best of three, on a busy machine
                start = time.process_time()
                region_spans(variant, call_format)
                seconds.append(time.process_time() - start)
            assert min(seconds) < 2.0  # quadratic time would be minutes


RESPONSE = '<think>\nnaïve 😀 plan\n</think>\n\n[get_café(städt="Zürich 東京", n=3), stop()]<|im_end|>'


def test_bytes_of_tokens_joined_are_the_text():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(RESPONSE)
    pieces = TokenBytes(tokenizer)(ids)
    assert len(pieces) == len(ids) and b"".join(pieces) == RESPONSE.encode()
    assert TokenBytes(tokenizer)([10**6, -1]) == [b"", b""]


def test_a_character_split_over_tokens_keeps_every_token_in_its_region():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(RESPONSE)
    got = token_regions(ids, tokenizer, "python")
    by_region = {region: tokenizer.decode([i for i, r in zip(ids, got) if r == region]) for region in Region}
    assert by_region[Region.NAME] == "get_caféstop"
    assert by_region[Region.PARAMETERS] == 'städt="Zürich 東京", n=3'
    assert by_region[Region.THINKING] == "naïve 😀 plan\n"
    assert by_region[Region.OUTSIDE] == "<|im_end|>"


def test_regions_belong_to_the_sampled_ids_whatever_their_segmentation():
    tokenizer = qwen_tokenizer()
    text = RESPONSE.removesuffix("<|im_end|>")
    canonical = tokenizer.encode(text)
    # The same text as a model might also sample it: every character on its own, never merged.
    letter_by_letter = [i for character in text for i in tokenizer.encode(character)]
    assert len(letter_by_letter) > 1.5 * len(canonical)
    assert b"".join(TokenBytes(tokenizer)(letter_by_letter)) == text.encode()
    # In the canonical ids the space before the second name is part of the name's token.
    for ids, names in ((canonical, "get_café stop"), (letter_by_letter, "get_caféstop")):
        got = token_regions(ids, tokenizer, "python")
        assert len(got) == len(ids)
        named = tokenizer.decode([i for i, region in zip(ids, got) if region == Region.NAME])
        assert named == names


class Pieces:
    """A tokenizer whose tokens are given outright; it has no decoder to inspect."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.added_tokens_decoder = {}

    def __len__(self):
        return len(self.pieces)

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


def test_a_token_over_a_border_goes_to_the_larger_share_and_on_a_tie_to_the_scarcer_region():
    pieces = ["<think>ab", "cdefghij</", "think>[", "f(", "a=1)", "", "]"]
    got = token_regions(range(len(pieces)), Pieces(*pieces), "python")
    assert [Region(r).name for r in got] == [
        "FORMAT",  # 7 bytes of tag, 2 of thought
        "THINKING",  # 8 bytes of thought, 2 of tag
        "FORMAT",
        "NAME",  # one byte of each: the name first
        "PARAMETERS",
        "OUTSIDE",  # a token without text
        "FORMAT",
    ]


def test_sentencepiece_pieces_and_fallback_bytes_are_understood():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"▁f": 0, "<0xC3>": 1, "<0xA9>": 2, "(": 3, "<unk>": 4}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=raw))([0, 1, 2, 3])
    assert pieces == [b" f", b"\xc3", b"\xa9", b"("] and b"".join(pieces).decode() == " fé("


@pytest.mark.parametrize("call_format", CALL_FORMATS)
@pytest.mark.parametrize(
    "text", ["I need the [f(a=1)] of", "one <tool_call>{", "<think>again", "[f(a=1)]", " "]
)
def test_a_thought_that_the_length_limit_cut_off_is_thinking_also_where_the_prompt_opened_it(
    text, call_format
):
    spans = region_spans(text, call_format, in_thought=True)
    assert {span.region for span in spans} - {Region.FORMAT} == {Region.THINKING}
    assert sum(span.end - span.start for span in spans) == len(text)
    closed = f"{text}</think>"  # a thought that ends is marked as it was
    assert region_spans(closed, call_format, in_thought=True) == region_spans(closed, call_format)
    tokenizer = byte_tokenizer()
    rows = [tokenizer.encode("I need")] * 2
    got = response_regions(rows, tokenizer, call_format, length=8, in_thought=[True, False])
    assert set(got[0, : len(rows[0])]) == {Region.THINKING} and not got[0, len(rows[0]) :].any()
    assert not got[1].any()


def test_responses_are_padded_and_mistakes_are_named():
    tokenizer = byte_tokenizer()
    rows = [tokenizer.encode(text) for text in ("[f()]", "hi", "")]
    got = response_regions(rows, tokenizer, "python", length=8)
    assert got.shape == (3, 8) and got.dtype == np.int8
    assert got[0].tolist() == [Region.FORMAT, Region.NAME, *[Region.FORMAT] * 3, 0, 0, 0]
    assert not got[1:].any()
    with pytest.raises(UserError, match="response 0 has 5 tokens, length is 4; raise length"):
        response_regions(rows, tokenizer, "python", length=4)
    with pytest.raises(UserError, match="call format 'xml' is unknown; choose one of python, tags, qwen"):
        token_regions(rows[0], tokenizer, "xml")


def test_real_responses_have_a_name_for_every_call(real_data):
    records = json.loads((real_data / "toolrl" / "rlla_sft.json").read_text())
    tokenizer = qwen_tokenizer()
    token_bytes = TokenBytes(tokenizer)
    calls_seen = 0
    for record in records:
        text = record["output"]
        ids = tokenizer.encode(text)
        got = token_regions(ids, token_bytes, "tags")
        named = region_spans(text, "tags")
        calls = parse_response(text, "tags").calls or ()
        data = text.encode()
        names = [data[s.start : s.end].decode() for s in named if s.region is Region.NAME]
        assert [json.loads(f'"{name}"') for name in names] == [call.name for call in calls]
        assert (Region.NAME in got) == bool(calls) and Region.THINKING in got
        calls_seen += len(calls)
    assert calls_seen > 341  # 341 records call, some of them more than once
