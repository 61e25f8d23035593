"""How the kernels are sharded: tokens over the batch axes, the vocabulary over the tensor axis.

Callers pass arrays only: the mesh is the one of `jax.set_mesh`. Without a mesh, or when every axis has size 1, the kernels run
as on one device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES

VOCAB_AXIS = "tensor"  # splits the columns of the unembedding
WIDTH_AXIS = "fsdp"  # splits the rows of the unembedding between uses; they are gathered before use


class Layout(NamedTuple):
    """Which mesh axes split what; empty or None where nothing is split."""

    axes: frozenset[str] = frozenset()  # every axis in use
    token_axes: tuple[str, ...] = ()  # over which tokens are split
    token_shards: int = 1  # parts of the tokens in all
    vocab_axis: str | None = None  # over which the vocabulary is split
    width_axis: str | None = None  # over which the unembedding's gradient is scattered
    width_shards: int = 1  # parts of that gradient

    @property
    def tokens(self) -> P:
        """Spec of `[tokens]`."""
        return P(self.token_axes or None)

    @property
    def hidden(self) -> P:
        """Spec of `[tokens, width]`."""
        return P(self.token_axes or None, None)

    @property
    def unembed(self) -> P:
        """Spec of `[width, vocab]` while it is used: whole in width."""
        return P(None, self.vocab_axis)

    @property
    def d_unembed(self) -> P:
        """Spec of the unembedding's gradient: scattered over width where that is possible."""
        return P(self.width_axis, self.vocab_axis)


def current_layout(width: int, vocab: int) -> Layout:
    """The layout on the mesh in use.

    A vocabulary that the tensor axis does not divide stays whole, and that axis splits tokens instead, so that no device repeats
    another's work.

    Raises:
      UserError: the mesh has an Explicit axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {}
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types):
        if kind == AxisType.Explicit and size > 1:
            raise UserError(f"mesh axis {name!r} is Explicit; the kernels need axis_types=AxisType.Auto")
        if (
            kind == AxisType.Auto
        ):  # a Manual axis belongs to a shard_map around this call: its arrays are local already
            sizes[name] = size
    if math.prod(sizes.values()) == 1:
        return Layout()
    split_vocab = sizes.get(VOCAB_AXIS, 1) > 1 and vocab % sizes[VOCAB_AXIS] == 0
    candidates = BATCH_AXES if split_vocab else (*BATCH_AXES, VOCAB_AXIS)
    token_axes = tuple(name for name in candidates if sizes.get(name, 1) > 1)
    scatter = sizes.get(WIDTH_AXIS, 1) > 1 and width % sizes[WIDTH_AXIS] == 0
    return Layout(
        axes=frozenset(sizes),
        token_axes=token_axes,
        token_shards=math.prod(sizes[name] for name in token_axes),
        vocab_axis=VOCAB_AXIS if split_vocab else None,
        width_axis=WIDTH_AXIS if scatter else None,
        width_shards=sizes[WIDTH_AXIS] if scatter else 1,
    )


def on_shards(layout: Layout, function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """`function` on each device's shard (`jax.shard_map`); the function itself when nothing is split."""
    if not layout.axes:
        return function
    # The kernels have gradient rules of their own, so shard_map need not track which values vary over which axis.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=set(layout.axes), check_vma=False
    )


def sum_over_tokens(grad: Float[Array, "width vocab"], layout: Layout) -> Float[Array, "_ vocab"]:
    """Sums the unembedding's gradient over all shards of the tokens; scattered over width as `Layout.d_unembed` says."""
    whole = tuple(name for name in layout.token_axes if name != layout.width_axis)
    if layout.width_axis is not None:
        grad = lax.psum_scatter(grad, layout.width_axis, scatter_dimension=0, tiled=True)
    return lax.psum(grad, whole) if whole else grad
