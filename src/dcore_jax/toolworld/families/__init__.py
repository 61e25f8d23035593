"""The families that come with the library. A new one: its file here, and its name in the next two lines."""

from dcore_jax.toolworld.families import files, orders
from dcore_jax.toolworld.family import register

for _module in (files, orders):
    register(_module.FAMILY)
