"""A fixed prompt whose log-probabilities the engine must give as the trainer does, after every update of the weights.

The prompt's own log-probabilities show the weights; one token sampled at another temperature shows that sampled log-probabilities
mean what training takes them for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from dcore_jax.engines.engine import Request, SamplingParams
from dcore_jax.errors import UserError

LENGTH = 64
TEMPERATURE = 0.5
# Largest mean difference of log-probabilities, as a share of their mean size (or of 1 nat, if that is more): rounding errors grow
# with the logits, and the tokens of a random prompt are improbable. bfloat16 has 8 bits of mantissa.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}
# Differences that say nothing about which of two weight versions an engine holds.
_NOISE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 5e-3}


class Reference(NamedTuple):
    """The trainer's side."""

    prompt: Float[np.ndarray, "length-1"]  # log p of each token of the prompt but the first
    sampled: Float[np.ndarray, "vocab"]  # log p of what may follow, at TEMPERATURE


class Seen(NamedTuple):
    """The engine's side."""

    prompt: Sequence[float]  # as Reference.prompt
    token: int  # sampled after the prompt
    logprob: float  # of that token


@dataclass(frozen=True)
class Canary:
    """A prompt for a vocabulary; every tokenizer has the first 256 ids."""

    vocab_size: int

    @property
    def ids(self) -> tuple[int, ...]:
        ids = np.random.default_rng(0).integers(0, min(self.vocab_size, 256), LENGTH)
        return tuple(int(i) for i in ids)

    @property
    def request(self) -> Request:
        sampling = SamplingParams(max_tokens=1, temperature=TEMPERATURE, ignore_eos=True)
        return Request(self.ids, sampling, "canary")


def reference_function(canary: Canary, graph: nnx.GraphDef, rows: int = 1) -> Callable[[Any], Reference]:
    """Parameters to what the trainer makes of the canary; `rows`: how many the mesh's batch axes want at least."""
    tokens = np.tile(np.array(canary.ids, np.int32), (rows, 1))

    @jax.jit
    def logprobs(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(tokens)[0].astype(np.float32)
        given = jax.nn.log_softmax(logits[:-1], axis=-1)
        return given[np.arange(LENGTH - 1), tokens[0, 1:]], jax.nn.log_softmax(logits[-1] / TEMPERATURE)

    return lambda params: Reference(*(np.asarray(x) for x in jax.device_get(logprobs(params))))


def check_canary(
    seen: Seen, reference: Reference, before: Reference | None, *, dtype: str, version: int, where: str
) -> float:
    """The mean difference between engine and trainer, nats; TOLERANCE is for that over the log-probabilities' own mean size.

    Args:
      before: the reference of the weights that the engine had; tells an update that did nothing from one that worked, where the
        weights moved by less than the tolerance.
      dtype: the coarser of the engine's and the trainer's.

    Raises:
      UserError: they differ by more than TOLERANCE[dtype], or the engine still answers as before.
    """
    given = np.asarray(seen.prompt, np.float64)
    if given.shape != reference.prompt.shape or not np.isfinite(given).all():
        raise UserError(f"{where}: no log-probabilities of the canary prompt; is this a vLLM server?")
    gap = float(np.abs(given - reference.prompt).mean())
    size = max(1.0, float(np.abs(reference.prompt).mean()))
    allowed = TOLERANCE[dtype] * size
    if gap > allowed:
        raise UserError(
            f"{where}: after weight update {version} the canary's log-probabilities are {gap:.3g} nats off the trainer's, more "
            f"than {allowed:.3g}: the engine does not hold the trainer's weights (see docs/vllm.md, The canary)"
        )
    if before is not None:
        moved = float(np.abs(before.prompt - reference.prompt).mean())
        still = float(np.abs(given - before.prompt).mean())
        if moved > _NOISE[dtype] * size and still < gap:
            raise UserError(
                f"{where}: weight update {version} changed nothing: the canary's log-probabilities are still those of the "
                "weights before (see docs/vllm.md, The canary)"
            )
    off = abs(float(reference.sampled[seen.token]) - seen.logprob)
    # One token of a sharper distribution, against a mean over many.
    if not off <= 5 * allowed / TEMPERATURE:
        raise UserError(
            f"{where}: a token sampled at temperature {TEMPERATURE} came with a log-probability {off:.3g} nats off; start the "
            "server with --logprobs-mode processed_logprobs"
        )
    return gap


def coarser(*dtypes: str) -> str:
    """The dtype among them with the widest tolerance."""
    return max(dtypes, key=TOLERANCE.__getitem__)
