"""The canary: a fixed prompt whose log-probabilities engine and trainer must agree on after every weight update.

The log-probabilities of the prompt's own tokens show whether the weights are the trainer's. One token sampled at another
temperature shows whether sampled log-probabilities are taken after temperature, as training assumes.
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
from dcore_jax.models import Decoder

LENGTH = 64
TEMPERATURE = 0.5
# Largest mean difference of log-probabilities, relative to their mean size (or to 1 nat, if that is more): rounding errors grow
# with the logits, and the tokens of a random prompt are improbable. bfloat16 has 8 bits of mantissa.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}
# Differences within rounding: they cannot tell which of two weight versions an engine holds.
_NOISE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 5e-3}


class Reference(NamedTuple):
    """The trainer's log-probabilities."""

    prompt: Float[np.ndarray, "length-1"]  # log p of each token of the prompt but the first
    sampled: Float[np.ndarray, "vocab"]  # log p of every possible next token, at TEMPERATURE


class EngineLogprobs(NamedTuple):
    """The engine's log-probabilities."""

    prompt: Sequence[float]  # as Reference.prompt
    token: int  # sampled after the prompt
    logprob: float  # of that token


@dataclass(frozen=True)
class Canary:
    """The canary prompt for a vocabulary; every tokenizer has the first 256 ids."""

    vocab_size: int

    @property
    def ids(self) -> tuple[int, ...]:
        ids = np.random.default_rng(0).integers(0, min(self.vocab_size, 256), LENGTH)
        return tuple(int(i) for i in ids)

    @property
    def request(self) -> Request:
        sampling = SamplingParams(max_tokens=1, temperature=TEMPERATURE, ignore_eos=True)
        return Request(self.ids, sampling, "canary")


class ReferenceModel:
    """The trainer's model as an engine's reference: computes the canary's log-probabilities for each version of the weights.

    Compiled once. The first weights must be a Decoder, whose structure later ones (its `nnx.state`) share.
    """

    def __init__(self, canary: Canary):
        self._canary = canary
        self._graph: nnx.GraphDef | None = None
        self._logprobs: Callable[[Any], Reference] | None = None

    def decoder(self, weights: Decoder | nnx.State) -> Decoder:
        """The weights as a Decoder.

        Raises:
          RuntimeError: the first weights are an `nnx.State`.
        """
        if isinstance(weights, Decoder):
            self._graph = self._graph or nnx.split(weights)[0]
            return weights
        if self._graph is None:
            raise RuntimeError("the first update needs a Decoder; later ones may be its nnx.state")
        return nnx.merge(self._graph, weights)

    def reference(self, decoder: Decoder) -> Reference:
        """The canary's log-probabilities by these weights."""
        graph, params = nnx.split(decoder)
        self._logprobs = self._logprobs or reference_function(self._canary, graph)
        return self._logprobs(params)


def reference_function(canary: Canary, graph: nnx.GraphDef, rows: int = 1) -> Callable[[Any], Reference]:
    """A compiled function from parameters to the canary's Reference; `rows`: fewest rows that the mesh's batch axes can split."""
    tokens = np.tile(np.array(canary.ids, np.int32), (rows, 1))

    @jax.jit
    def logprobs(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(tokens)[0].astype(np.float32)
        given = jax.nn.log_softmax(logits[:-1], axis=-1)
        return given[np.arange(LENGTH - 1), tokens[0, 1:]], jax.nn.log_softmax(logits[-1] / TEMPERATURE)

    return lambda params: Reference(*(np.asarray(x) for x in jax.device_get(logprobs(params))))


def check_canary(
    engine: EngineLogprobs,
    reference: Reference,
    previous: Reference | None,
    *,
    dtype: str,
    version: int,
    name: str,
) -> float:
    """Compares the engine's log-probabilities with the trainer's.

    Args:
      previous: the reference of the weights that the engine had before. It detects an update that did nothing where the weights
        moved by less than the tolerance.
      dtype: the coarser of the engine's and the trainer's; decides the tolerance.
      version: of the weights, for messages.
      name: of the engine or server, for messages.

    Returns:
      The mean absolute difference over the prompt, nats.

    Raises:
      UserError: it is more than TOLERANCE[dtype] of the log-probabilities' mean size, or the engine still has the previous
        weights, or a sampled token's log-probability is not the one after temperature.
    """
    given = np.asarray(engine.prompt, np.float64)
    if given.shape != reference.prompt.shape or not np.isfinite(given).all():
        raise UserError(f"{name}: no log-probabilities of the canary prompt; is this a vLLM server?")
    gap = float(np.abs(given - reference.prompt).mean())
    size = max(1.0, float(np.abs(reference.prompt).mean()))
    allowed = TOLERANCE[dtype] * size
    if gap > allowed:
        raise UserError(
            f"{name}: after weight update {version} the canary's log-probabilities are {gap:.3g} nats off the trainer's, more "
            f"than {allowed:.3g}: the engine does not hold the trainer's weights (see docs/vllm.md, The canary)"
        )
    if previous is not None:
        moved = float(np.abs(previous.prompt - reference.prompt).mean())
        gap_to_previous = float(np.abs(given - previous.prompt).mean())
        if moved > _NOISE[dtype] * size and gap_to_previous < gap:
            raise UserError(
                f"{name}: weight update {version} changed nothing: the canary's log-probabilities are still those of the "
                "previous weights (see docs/vllm.md, The canary)"
            )
    off = abs(float(reference.sampled[engine.token]) - engine.logprob)
    # One token of a sharper distribution varies more than the mean over many tokens; `not <=` refuses NaN too.
    if not off <= 5 * allowed / TEMPERATURE:
        raise UserError(
            f"{name}: a token sampled at temperature {TEMPERATURE} came with a log-probability {off:.3g} nats off; start the "
            "server with --logprobs-mode processed_logprobs"
        )
    return gap


def coarser(*dtypes: str) -> str:
    """The dtype among them with the widest tolerance."""
    return max(dtypes, key=TOLERANCE.__getitem__)
