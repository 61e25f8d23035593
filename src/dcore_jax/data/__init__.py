"""Files to rendered samples to packed rows: records.py, rendering.py, store.py, packing.py (which alone needs grain)."""

from dcore_jax.data.records import Malformed, Record, Rejections, parse_record, read_records
from dcore_jax.data.rendering import Rendered, Sample, render, render_batch
from dcore_jax.data.store import DataReport, SampleStore, load_samples, samples_from_records

__all__ = [
    "DataReport",
    "Malformed",
    "Record",
    "Rejections",
    "Rendered",
    "Sample",
    "SampleStore",
    "load_samples",
    "parse_record",
    "read_records",
    "render",
    "render_batch",
    "samples_from_records",
]
