"""Regions of a response (format, tool name, parameters, thinking), as labels of the sampled token ids."""

from dcore_jax.regions.assign import response_regions, token_regions
from dcore_jax.regions.region import PAPER_RULES, RELEASE_RULES, Region, RegionRules, RegionValues, Span
from dcore_jax.regions.spans import region_spans
from dcore_jax.regions.token_bytes import TokenBytes

__all__ = [
    "PAPER_RULES",
    "RELEASE_RULES",
    "Region",
    "RegionRules",
    "RegionValues",
    "Span",
    "TokenBytes",
    "region_spans",
    "response_regions",
    "token_regions",
]
