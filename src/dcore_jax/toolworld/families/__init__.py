"""The library's own families, one file each; importing a file registers its family.

A new family is a file here that ends in `FAMILY = register(ToolFamily(...))`, and a line below. The last two are held out.
"""

# ruff: noqa: I001  # the order is that of registration
from dcore_jax.toolworld.families import files as files
from dcore_jax.toolworld.families import orders as orders
from dcore_jax.toolworld.families import travel as travel
from dcore_jax.toolworld.families import messages as messages
from dcore_jax.toolworld.families import calendar as calendar
from dcore_jax.toolworld.families import bank as bank
from dcore_jax.toolworld.families import devices as devices
from dcore_jax.toolworld.families import documents as documents
from dcore_jax.toolworld.families import music as music
from dcore_jax.toolworld.families import recipes as recipes
