"""From files to packed rows: records.py, rendering.py, store.py, packing.py (the only one that imports grain)."""

from dcore_jax.data.files import Malformed
from dcore_jax.data.record import Record, Reference, Rejections
from dcore_jax.data.records import parse_any_record, parse_record, read_records
from dcore_jax.data.rendering import Rendered, TrainingSample, render, render_batch
from dcore_jax.data.store import DataReport, SampleStore, load_samples, samples_from_records

__all__ = [
    "DataReport",
    "Malformed",
    "Record",
    "Reference",
    "Rejections",
    "Rendered",
    "SampleStore",
    "TrainingSample",
    "load_samples",
    "parse_any_record",
    "parse_record",
    "read_records",
    "render",
    "render_batch",
    "samples_from_records",
]
