"""`logprobs_and_entropy`: the public function over three implementations, with one gradient rule (recomputation)."""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dcore_jax.errors import UserError, check_choice
from dcore_jax.kernels import blocked, pallas, reference
from dcore_jax.kernels.mesh_axes import current_layout, on_shards
from dcore_jax.kernels.tiles import target_in_range

IMPLEMENTATIONS = ("auto", "reference", "blocked", "pallas")
_MODULES: dict[str, ModuleType] = {"blocked": blocked, "pallas": pallas}


def logprobs_and_entropy(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    *,
    temperature: float | int | Float[Array, ""] = 1.0,
    implementation: str = "auto",
) -> tuple[Float[Array, " tokens"], Float[Array, " tokens"]]:
    """Log-probability of each target and entropy of each distribution, from hidden states, without the logits in memory.

    With `l = hidden @ unembed / temperature` (accumulated in float32): `logprobs[t] = l[t, targets[t]] - logsumexp(l[t])`
    and `entropy[t] = -sum_v p log p`, `p = softmax(l[t])`, both `[tokens]` float32 in nats.

    Differentiable in `hidden` and `unembed` (reverse mode), through the log-probabilities only: the entropy's cotangent is
    ignored, and `temperature` has no gradient. A target outside [0, vocab) gives NaN.

    Args:
      implementation: `reference` (dense), `blocked` (plain JAX, any backend, sharded under `jax.set_mesh`), `pallas` (GPU and
        TPU; interpreted on a CPU, for tests), or `auto`: blocked everywhere, until Pallas is measured to be faster.

    Raises:
      UserError: an unknown implementation, or a temperature that is not positive.
    """
    implementation = resolve(implementation)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise UserError(
            f"temperature={temperature} must be positive; greedy decoding has no log-probabilities"
        )
    dtype = jnp.promote_types(hidden.dtype, unembed.dtype)
    hidden, unembed = hidden.astype(dtype), unembed.astype(dtype)
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
    if implementation == "reference":
        return reference.logprobs_and_entropy(hidden, unembed, targets, temperature)
    return _with_recomputation(hidden, unembed, targets, temperature, implementation)


def resolve(implementation: str) -> str:
    """The implementation of a name, `auto` resolved. Raises UserError for an unknown name."""
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    return "blocked" if implementation == "auto" else implementation


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _with_recomputation(hidden, unembed, targets, temperature, implementation):
    (logprobs, entropy), _ = _forward(hidden, unembed, targets, temperature, implementation)
    return logprobs, entropy


def _forward(hidden, unembed, targets, temperature, implementation):
    kernel = _MODULES[implementation]
    layout = current_layout(*unembed.shape)
    tokens = hidden.shape[0]
    rows = -tokens % layout.token_shards
    run = on_shards(
        layout,
        lambda *arrays: kernel.forward(*arrays, vocab_axis=layout.vocab_axis),
        in_specs=(layout.hidden, layout.unembed, layout.tokens, jax.P()),
        out_specs=(layout.tokens,) * 3,
    )
    logprobs, entropy, logsumexp = (
        x[:tokens] for x in run(pad_rows(hidden, rows), unembed, pad_rows(targets, rows), temperature)
    )
    logprobs = jnp.where(target_in_range(targets, unembed.shape[1]), logprobs, jnp.nan)
    return (logprobs, entropy), (hidden, unembed, targets, temperature, logsumexp)


def _backward(implementation, residuals, cotangents):
    hidden, unembed, targets, temperature, logsumexp = residuals
    cotangent, _ = cotangents  # the entropy's is ignored: it has no gradient by definition
    kernel = _MODULES[implementation]
    layout = current_layout(*unembed.shape)
    tokens = hidden.shape[0]
    rows = -tokens % layout.token_shards

    def local(*arrays):
        d_hidden, d_unembed = kernel.backward(*arrays, layout=layout)
        return d_hidden.astype(hidden.dtype), d_unembed

    run = on_shards(
        layout,
        local,
        in_specs=(layout.hidden, layout.unembed, layout.tokens, jax.P(), layout.tokens, layout.tokens),
        out_specs=(layout.hidden, layout.d_unembed),
    )
    padded = (pad_rows(x, rows) for x in (targets, logsumexp, cotangent))
    targets, logsumexp, cotangent = padded
    d_hidden, d_unembed = run(pad_rows(hidden, rows), unembed, targets, temperature, logsumexp, cotangent)
    return d_hidden[:tokens], d_unembed, None, jnp.zeros_like(temperature)


_with_recomputation.defvjp(_forward, _backward)


def pad_rows(array: Array, rows: int) -> Array:
    """`array` with `rows` zero rows at its end."""
    return jnp.pad(array, ((0, rows),) + ((0, 0),) * (array.ndim - 1)) if rows else array
