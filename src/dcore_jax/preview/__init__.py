"""What a model will see of data, before anything is trained: segments.py finds the parts, page.py shows them."""

from dcore_jax.preview.collect import Preview, collect
from dcore_jax.preview.page import html_page, terminal_text
from dcore_jax.preview.segments import Segment, sample_segments, text_segments

__all__ = [
    "Preview",
    "Segment",
    "collect",
    "html_page",
    "sample_segments",
    "terminal_text",
    "text_segments",
]
