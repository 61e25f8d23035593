"""Seeds that match an item of a benchmark are left out and counted; data/contamination.py decides."""

from collections.abc import Iterable

from dcore_jax.data.contamination import (
    LONG,
    SAME_ITEM,
    SAME_QUERY,
    ContaminationGuard,
    read_benchmarks,
)
from dcore_jax.data.record import Rejections
from dcore_jax.distill.sample import SeedSample

__all__ = [
    "LONG",
    "SAME_ITEM",
    "SAME_QUERY",
    "ContaminationGuard",
    "leave_out_contaminated",
    "read_benchmarks",
    "reason_of",
]


def reason_of(guard: ContaminationGuard, sample: SeedSample) -> str:
    """Why the sample must not be trained on; empty when it may be."""
    earlier = [message["content"] for message in sample.history if message["role"] == "user"]
    return guard.reason_of([sample.query, *earlier], [str(tool["function"]["name"]) for tool in sample.tools])


def leave_out_contaminated(
    samples: Iterable[SeedSample], guard: ContaminationGuard, rejections: Rejections
) -> list[SeedSample]:
    """The samples that no benchmark item matches; the others are counted in `rejections` by reason."""
    kept = []
    for sample in samples:
        if reason := reason_of(guard, sample):
            rejections.add(reason, sample.origin)
        else:
            kept.append(sample)
    return kept
