"""Token-weighted SFT, ResT's baselines: every learned token counts by the region of the turn that it stands in.

    L = sum_t w_t * -log p(y_t) / sum_t w_t,   over the learned tokens of the global batch

    tsft   w_t is the number given for the token's region
    rsft   w_t = clip(1 / H_r, w_min, w_max), H_r the mean entropy of region r under the model before training, over the first
           step's rows; then divided by its mean over the turn, as ResT's weights are (2509.21826, Eq. 9 and 19)

A turn's own weight multiplies both. Weights that are all equal give plain SFT, bit for bit where they are 1.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int8, PyTree

from dcore_jax.advantages import RegionEntropy, entropy_region_weights, region_entropy, region_weight_table
from dcore_jax.calls import parse_any_response
from dcore_jax.data.store import SampleStore
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.errors import UserError
from dcore_jax.kernels import logprobs_and_entropy
from dcore_jax.mesh import put_global
from dcore_jax.progress import progress_bar
from dcore_jax.regions import Region, RegionValues, TokenBytes, token_regions
from dcore_jax.sft.config import LossConfig, SFTConfig
from dcore_jax.sft.inputs import BatchStream
from dcore_jax.sft.step import Batch, predicted
from dcore_jax.training import TrainSetup

# Tokens before a turn that may hold the `<think>` of its prompt.
_OPENING = 8
# Of a turn that makes no call: nothing of it is a name or a parameter.
_NO_CALLS = "tags"


@dataclass(frozen=True)
class Weighting:
    """The weights of a run, fixed before its first step and kept in its checkpoints."""

    loss: LossConfig
    store: SampleStore  # with the weights
    table: Float32[np.ndarray, "5"]  # of the regions, before a turn's mean is divided out
    entropy: tuple[float, ...] | None  # mean of each region before training, in nats; NaN: not seen
    counts: Mapping[str, int]  # learned tokens in each region

    @classmethod
    def of_run(
        cls, config: SFTConfig, setup: TrainSetup, params: PyTree, store: SampleStore, stream: BatchStream
    ) -> "Weighting":
        """The weights of a new run; `rsft` measures the entropies on the rows of its first step.

        Raises:
          UserError: no learned token with a weight above 0.
        """
        regions, entropy = store_regions(store, load_tokenizer(setup.folder)), None
        if config.loss.name == "rsft":
            # The packing depends on lengths alone, so the labels can travel where the weights will.
            labelled = replace(store, weights=regions.astype(np.float32))
            with closing(iter(stream.batches(config, labelled))) as batches:
                packed = next(batches)
            micro = (x.reshape(config.accumulation, -1, x.shape[-1]) for x in packed)
            *batch, labels = put_global(setup.mesh, (None, "batch", None), tuple(micro))
            found = jax.jit(partial(measured_regions, setup.graph))(params, Batch(*batch), labels)
            entropy = tuple(float(x) for x in jax.device_get(found.mean()))
        return cls._of(config.loss, store, regions, entropy)

    @classmethod
    def resumed(
        cls, config: SFTConfig, setup: TrainSetup, saved: Mapping[str, Any], store: SampleStore
    ) -> "Weighting":
        """The weights of a run that goes on: the entropies are those of its checkpoint."""
        regions = store_regions(store, load_tokenizer(setup.folder))
        entropy = saved["region_entropy"]
        found = None if entropy is None else tuple(math.nan if x is None else float(x) for x in entropy)
        return cls._of(config.loss, store, regions, found)

    @classmethod
    def _of(
        cls,
        loss: LossConfig,
        store: SampleStore,
        regions: Int8[np.ndarray, "tokens"],
        entropy: tuple[float, ...] | None,
    ) -> "Weighting":
        table = region_table(loss, None if entropy is None else np.array(entropy, np.float32))
        weighted = weighted_store(store, regions, table, mean_one=loss.name == "rsft")
        return cls(loss, weighted, table, entropy, region_counts(store, regions))

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        entropy = self.entropy
        return {"region_entropy": entropy and [None if math.isnan(x) else x for x in entropy]}

    def __str__(self) -> str:
        parts = []
        for region in Region:
            tokens = self.counts[region.name.lower()]
            nats = (
                f", {self.entropy[region]:.3g} nats"
                if self.entropy and not math.isnan(self.entropy[region])
                else ""
            )
            parts.append(f"{region.name.lower()} {self.table[region]:.3g} ({tokens:,} tokens{nats})")
        return f"{self.loss.name}, weights {', '.join(parts)}"


def store_regions(store: SampleStore, tokenizer: Any) -> Int8[np.ndarray, "tokens"]:
    """The `Region` of every learned token, found on the ids, in the notation that its turn is written in; OUTSIDE elsewhere."""
    regions = np.full(len(store.tokens), Region.OUTSIDE, np.int8)
    token_bytes = TokenBytes(tokenizer)
    turns = list(_turns(store))
    bar = progress_bar(
        len(turns), desc="regions", unit="turn", transient=True, disable=jax.process_index() > 0
    )
    for start, stop in turns:
        bar.update()
        ids = store.tokens[start:stop].tolist()
        before = store.tokens[max(0, start - _OPENING) : start].tolist()
        in_thought = b"".join(token_bytes(before)).rstrip().endswith(b"<think>")
        text = b"".join(token_bytes(ids[:-1])).decode("utf-8", errors="replace")
        _, notation = parse_any_response(text)
        regions[start:stop] = token_regions(ids, token_bytes, notation or _NO_CALLS, in_thought=in_thought)
    bar.close()
    return regions


def region_counts(store: SampleStore, regions: Int8[np.ndarray, "tokens"]) -> dict[str, int]:
    """Learned tokens in each region, by its name."""
    counts = np.bincount(regions[store.loss_mask], minlength=len(Region))
    return {region.name.lower(): int(counts[region]) for region in Region}


def measured_regions(
    graph: nnx.GraphDef, params: PyTree, batch: Batch, regions: Float[Array, "micro rows length"]
) -> RegionEntropy:
    """Sum of entropies and number of learned tokens in each region of a batch, under the model of these parameters.

    Args:
      regions: the `Region` of every token, as a number.
    """

    def of_micro(micro: tuple[Batch, Float[Array, "rows length"]]) -> RegionEntropy:
        part, labels = micro
        model = nnx.merge(graph, params)
        hidden = model.hidden(part.tokens, part.positions, part.segment_ids)
        # Position t predicts token t + 1: its entropy is that of the next token's distribution.
        _, entropy = logprobs_and_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            model.head_in(hidden.dtype),
            jnp.roll(part.tokens, -1, axis=-1).reshape(-1),
        )
        shifted = jnp.roll(labels, -1, axis=-1).astype(jnp.int32)
        return region_entropy(entropy.reshape(part.tokens.shape), shifted, predicted(part, part.loss_mask))

    return jax.tree.map(lambda x: x.sum(0), jax.lax.map(of_micro, (batch, regions)))


def region_table(
    config: LossConfig, mean_entropy: Float[Array | np.ndarray, "5"] | None = None
) -> Float32[np.ndarray, "5"]:
    """The weight of each region before a turn's mean is divided out, by `Region`.

    Args:
      mean_entropy: in nats, of the regions before training; `rsft` needs it. A region without tokens (NaN) weighs 1, and so do
        tokens of no region, of which an entropy says nothing.

    Source:
      ResT, 2509.21826, Eq. 9 and Theorem 2, for SFT; `tsft`: the call weights of the SFT scripts in ResT's release.
    """
    if config.name == "tsft":
        return np.array(config.weights.table(), np.float32)
    assert mean_entropy is not None
    initial = entropy_region_weights(mean_entropy, kind=config.entropy_weights).at[Region.OUTSIDE].set(1.0)
    ceilings = RegionValues(*[config.weight_max] * len(Region))
    table = region_weight_table(
        initial,
        rates=RegionValues(),
        ceilings=ceilings,
        weight_min=config.weight_min,
        weight_max=config.weight_max,
    )
    return np.asarray(table, np.float32)


def weighted_store(
    store: SampleStore,
    regions: Int8[np.ndarray, "tokens"],
    table: Float32[np.ndarray, "5"],
    *,
    mean_one: bool,
) -> SampleStore:
    """The store with every learned token's weight times that of its region.

    Args:
      mean_one: divide a turn's region weights by their mean over its tokens (`rsft`).

    Raises:
      UserError: no token with a weight above 0 is left.
    """
    weights = np.ones(len(store.tokens), np.float32)
    learned = store.loss_mask
    weights[learned] = table[regions[learned]]
    if mean_one:
        for start, stop in _turns(store):
            turn = weights[start:stop]
            weights[start:stop] = turn / np.float32(turn.mean(dtype=np.float64))
    if not np.any(weights[learned] > 0):
        raise UserError(
            "loss.weights leave no token with a weight above 0; raise that of a region in the data"
        )
    return replace(store, weights=weights if store.weights is None else weights * store.weights)


def _turns(store: SampleStore) -> Iterator[tuple[int, int]]:
    """Start and end of every learned turn, a run of tokens with loss; the first token of a sample has none, so none spans two."""
    learned = np.pad(store.loss_mask, 1).astype(np.int8)
    change = np.diff(learned)
    starts, stops = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    yield from zip(starts.tolist(), stops.tolist())
