"""Vocabulary blocks in a Pallas kernel: not written yet."""

from dcore_jax.errors import UserError


def forward(*args, **kwargs):
    """Raises: the kernel is not written yet."""
    raise UserError("implementation='pallas' is not written yet; use 'blocked'")


backward = forward
