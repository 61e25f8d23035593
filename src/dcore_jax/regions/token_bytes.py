"""The bytes of each token.

A single token cannot be decoded to text when a character is split over several tokens, and re-tokenising the text need not give
the sampled ids. Bytes have neither problem: the concatenated bytes of the tokens are the text.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 is itself, the other bytes are 256, 257, ..."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    table = {chr(byte): byte for byte in kept}
    return table | {chr(256 + place): byte for place, byte in enumerate(moved)}


_ALPHABET = _byte_level_alphabet()


def _alphabet_kind(tokenizer: Any) -> str:
    """`byte_level`, `sentencepiece` or `plain`, from the decoder of a fast tokenizer."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return "plain"
    state = json.dumps(json.loads(decoder.__getstate__()))
    if '"ByteLevel"' in state:
        return "byte_level"
    if '"ByteFallback"' in state or '"Metaspace"' in state or "\\u2581" in state:
        return "sentencepiece"
    return "plain"


class TokenBytes:
    """Maps token ids of one tokenizer to bytes, with a cache.

    Byte-level BPE (Qwen, Llama 3) is exact. SentencePiece is exact except for the leading space of the first word, which its
    decoder drops. With any other tokenizer each id is decoded alone. Added tokens such as `<tool_call>` and `<|im_end|>` are
    their own text. Ids without a token (an embedding's padding) give empty bytes.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._kind = _alphabet_kind(tokenizer)
        self._known: dict[int, bytes] = {
            int(token_id): str(token).encode() for token_id, token in tokenizer.added_tokens_decoder.items()
        }

    def __call__(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id, in the same order."""
        return [self._lookup(int(token_id)) for token_id in token_ids]

    def _lookup(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._convert(token_id)
        return known

    def _convert(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._tokenizer):
            return b""
        if self._kind == "plain":
            return self._tokenizer.decode([token_id]).encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._kind == "byte_level":
            if all(character in _ALPHABET for character in token):
                return bytes(_ALPHABET[character] for character in token)
            return token.encode()
        fallback = _BYTE_FALLBACK.fullmatch(token)
        return bytes([int(fallback[1], 16)]) if fallback else token.replace("▁", " ").encode()
