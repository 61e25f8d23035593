"""Region labels of tokens: byte spans to tokens, and responses to a padded array."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int8

from dcore_jax.errors import UserError
from dcore_jax.regions.region import PAPER_RULES, Region, RegionRules
from dcore_jax.regions.spans import region_spans
from dcore_jax.regions.token_bytes import TokenBytes

# Where regions cover equally many bytes of a token, the first of these gets it: rare regions before frequent ones.
_TIE_ORDER = (Region.NAME, Region.PARAMETERS, Region.FORMAT, Region.THINKING, Region.OUTSIDE)
_TIE_SCORE = np.array([len(_TIE_ORDER) - _TIE_ORDER.index(region) for region in Region])


def token_regions(
    token_ids: Sequence[int],
    tokenizer: Any,
    call_format: str,
    *,
    rules: RegionRules = PAPER_RULES,
    in_thought: bool = False,
) -> Int8[np.ndarray, "tokens"]:
    """The `Region` of every sampled token of one response; any ids give a result.

    A token across a border belongs to the region that covers most of its bytes; on equal shares to the first of name, parameters,
    format, thinking, outside. Nothing is re-tokenised, so the result always aligns with `token_ids`.

    Args:
      tokenizer: a Hugging Face tokenizer, or a `TokenBytes` of one, made once for many responses.
      call_format: one of `calls.CALL_FORMATS`.
      rules: where the borders of regions are.
      in_thought: the prompt opened the thought, as in `region_spans`.

    Raises:
      UserError: an unknown call format.
    """
    token_bytes = tokenizer if isinstance(tokenizer, TokenBytes) else TokenBytes(tokenizer)
    pieces = token_bytes(token_ids)
    text = b"".join(pieces)
    region_of_byte = np.full(len(text), Region.OUTSIDE, dtype=np.int64)
    for start, end, region in region_spans(text, call_format, rules=rules, in_thought=in_thought):
        region_of_byte[start:end] = region
    token_of_byte = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    cells = len(pieces) * len(Region)
    covered = np.bincount(token_of_byte * len(Region) + region_of_byte, minlength=cells)
    covered = covered.reshape(len(pieces), len(Region))
    chosen = np.argmax(covered * 8 + _TIE_SCORE, axis=1)
    return np.where(covered.any(axis=1), chosen, Region.OUTSIDE).astype(np.int8)


def response_regions(
    responses: Sequence[Sequence[int]],
    tokenizer: Any,
    call_format: str | Sequence[str],
    *,
    length: int,
    rules: RegionRules = PAPER_RULES,
    in_thought: Sequence[bool] | None = None,
) -> Int8[np.ndarray, "responses tokens"]:
    """`token_regions` of many responses, padded with `Region.OUTSIDE` to `length` tokens.

    Args:
      call_format: of all responses, or of each.
      in_thought: of each, whether its prompt opened the thought; None: of none.

    Raises:
      UserError: a response is longer than `length`, or an unknown call format.
    """
    token_bytes = tokenizer if isinstance(tokenizer, TokenBytes) else TokenBytes(tokenizer)
    regions = np.full((len(responses), length), Region.OUTSIDE, dtype=np.int8)
    notations = [call_format] * len(responses) if isinstance(call_format, str) else call_format
    for row, (token_ids, notation) in enumerate(zip(responses, notations, strict=True)):
        if len(token_ids) > length:
            raise UserError(f"response {row} has {len(token_ids)} tokens, length is {length}; raise length")
        begun = in_thought is not None and in_thought[row]
        regions[row, : len(token_ids)] = token_regions(
            token_ids, token_bytes, notation, rules=rules, in_thought=begun
        )
    return regions
