"""Scalings of the rotary frequencies, as `rope_scaling` or `rope_parameters` of a `config.json` names them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dcore_jax.errors import UserError
from dcore_jax.models.fields import positive_number, shown, whole_number


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's rotary frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    @property
    def context_length(self) -> int | None:
        """None: a config of this type says its whole length in max_position_embeddings."""
        return None

    @property
    def cosine_factor(self) -> float:
        """What cosines and sines are multiplied with."""
        return 1.0


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (`rope_type: yarn`): the context of `original_max_position_embeddings` made `factor` times as long.

    Source: arXiv 2309.00071; fields and defaults as in transformers.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None  # None: from factor and the two mscales
    beta_fast: float = 32.0  # channels with more turns than this in the original context keep their frequency
    beta_slow: float = 1.0  # those with fewer turns than this have it divided by `factor`
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True  # the two boundaries are rounded to whole channels

    @property
    def context_length(self) -> int | None:
        """Positions that the scaling reaches; released configs may leave max_position_embeddings at less."""
        return int(self.factor * self.original_max_position_embeddings)

    @property
    def cosine_factor(self) -> float:
        """What cosines and sines are multiplied with: the square root of YaRN's attention temperature `1/t`, section 3.4."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    def _magnitude(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0


RopeScaling = Llama3Scaling | YarnScaling
_TYPES = {"llama3": Llama3Scaling, "yarn": YarnScaling}


def hf_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """`rope_parameters` of a `config.json` that `read_rope` reads back to the same base and scaling."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    (kind,) = (name for name, scaling_type in _TYPES.items() if isinstance(scaling, scaling_type))
    given = {name: value for name, value in vars(scaling).items() if value is not None}
    return {"rope_type": kind, "rope_theta": theta, **given}


def read_rope(config: Mapping[str, Any], positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies: transformers 5 writes rope_parameters, 4 rope_theta and rope_scaling.

    Args:
      config: the fields of a `config.json`.
      positions: its max_position_embeddings.

    Raises:
      UserError: a rope type other than default, llama3 and yarn, or a field that is missing, wrong or not the type's.
    """
    given = {name: config.get(name) for name in ("rope_scaling", "rope_parameters")}
    for name, value in given.items():
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"field {name}={shown(value)} is not an object of rope fields")
    old, new = given["rope_scaling"], given["rope_parameters"]
    if old and new and old != new:
        raise UserError(
            "fields rope_scaling and rope_parameters differ; keep the one that the model was trained with"
        )
    rope = {**(old or new or {})}
    theta = positive_number("rope_theta", rope.pop("rope_theta", config.get("rope_theta", 10_000.0)))
    kind = rope.pop("rope_type", rope.get("type", "default"))
    if (alias := rope.pop("type", kind)) != kind:
        raise UserError(f"rope_type {shown(kind)} and type {shown(alias)} of the rope fields differ")
    partial = rope.pop("partial_rotary_factor", 1.0)
    if isinstance(partial, bool) or partial != 1.0:
        raise UserError(
            f"field rope_parameters.partial_rotary_factor={shown(partial)} changes the result and is not supported (only 1.0)"
        )
    if not isinstance(kind, str) or kind not in ("default", *_TYPES):
        raise UserError(
            f"rope type {shown(kind)} changes the result and is not supported (only 'default', 'llama3' and 'yarn')"
        )
    scaling: RopeScaling | None = None
    if kind != "default":
        try:
            scaling = _read_yarn(rope, config, positions) if kind == "yarn" else _read_llama3(rope, config)
        except KeyError as error:
            raise UserError(f"rope type {kind!r} needs the field {error}") from None
    unread = set(rope) - (set() if scaling is None else {field.name for field in fields(scaling)})
    if unread:
        name = min(unread, key=list(rope).index)
        raise UserError(f"rope field {name}={shown(rope[name])} is not one of rope type {kind!r}; remove it")
    if kind == "yarn" and theta <= 1:
        raise UserError(f"field rope_theta={shown(theta)} must be above 1 for rope type 'yarn'")
    return theta, scaling


def _read_llama3(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=positive_number("factor", rope["factor"]),
        low_freq_factor=positive_number("low_freq_factor", rope["low_freq_factor"]),
        high_freq_factor=positive_number("high_freq_factor", rope["high_freq_factor"]),
        original_max_position_embeddings=_original_positions(
            config, rope["original_max_position_embeddings"]
        ),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(
            f"rope field high_freq_factor={scaling.high_freq_factor} must be above low_freq_factor={scaling.low_freq_factor}"
        )
    return scaling


def _read_yarn(rope: Mapping[str, Any], config: Mapping[str, Any], positions: int) -> YarnScaling:
    # Without a length of its own the scaling starts from max_position_embeddings, as in transformers.
    outside = config.get("original_max_position_embeddings", positions)
    original = _original_positions(config, rope.get("original_max_position_embeddings", outside))

    def optional(name: str, default: float | None) -> float | None:
        value = rope.get(name)
        return default if value is None else positive_number(name, value)

    factor = rope["factor"]  # null: what the two lengths say
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise UserError(f"field truncate={shown(truncate)} is neither true nor false")
    scaling = YarnScaling(
        factor=positions / original if factor is None else positive_number("factor", factor),
        original_max_position_embeddings=original,
        attention_factor=optional("attention_factor", None),
        beta_fast=optional("beta_fast", 32.0) or 32.0,
        beta_slow=optional("beta_slow", 1.0) or 1.0,
        mscale=optional("mscale", None),
        mscale_all_dim=optional("mscale_all_dim", None),
        truncate=truncate,
    )
    if scaling.factor < 1:
        raise UserError(f"rope field factor={scaling.factor} is below 1; YaRN only lengthens a context")
    if scaling.beta_fast < scaling.beta_slow:
        raise UserError(
            f"rope field beta_fast={scaling.beta_fast} must be at least beta_slow={scaling.beta_slow}"
        )
    return scaling


def _original_positions(config: Mapping[str, Any], value: Any) -> int:
    """The scaling's original length; one outside the rope fields would win over theirs in transformers."""
    original = whole_number("original_max_position_embeddings", value)
    outside = config.get("original_max_position_embeddings", original)
    if outside != original:
        raise UserError(
            f"field original_max_position_embeddings={shown(outside)} differs from that of the rope fields, {original}"
        )
    return original
