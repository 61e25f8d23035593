"""The library's own families, one file each; importing a file registers its family.

A new family is a file here that ends in `FAMILY = register(ToolFamily(...))`, and a line below.
"""

from dcore_jax.toolworld.families import files as files
from dcore_jax.toolworld.families import orders as orders
