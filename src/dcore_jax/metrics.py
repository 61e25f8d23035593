"""What a run says of itself: `metrics.jsonl` always, TensorBoard, wandb or trackio when asked for; and model FLOPs."""

import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from dcore_jax.atomic import atomic_path, write_text_atomic
from dcore_jax.errors import UserError
from dcore_jax.models import ModelConfig

Tracker = Literal["tensorboard", "wandb", "trackio"]

# Dense bf16 matrix rates of one device, TFLOP/s, by the vendors' data sheets; the longest matching name counts.
PEAK_TFLOPS = {
    "h100": 989.0,
    "h200": 989.0,
    "a100": 312.0,
    "l4": 121.0,
    "v100": 125.0,
    "t4": 65.0,
    "tpu v4": 275.0,
    "tpu v5 lite": 197.0,
    "tpu v5e": 197.0,
    "tpu v5": 459.0,
    "tpu v5p": 459.0,
    "tpu v6 lite": 918.0,
    "tpu v6e": 918.0,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device by its `device_kind`; None for one that is not in the table (every CPU)."""
    names = [name for name in PEAK_TFLOPS if name in device_kind.lower()]
    return PEAK_TFLOPS[max(names, key=len)] * 1e12 if names else None


def training_flops(
    config: ModelConfig,
    tokens: int,
    loss_tokens: int,
    attended: int,
    *,
    adapter_parameters: int | None = None,
) -> float:
    """Floating point operations that one forward and backward pass needs, useful ones only, recomputation not counted.

    Args:
      tokens: tokens that are no padding. loss_tokens: those that the output head is needed for.
      attended: sum over tokens of the number of keys each may see (its position + 1).
      adapter_parameters: that alone are trained (LoRA): no gradient of a frozen weight is computed, which leaves four of its six.

    Six per weight and token (two forward, four backward); twelve per head channel and attended key, for scores and values.
    """
    head = config.vocab_size * config.hidden_size
    layers = config.num_matmul_parameters - head
    attention = config.num_layers * config.num_heads * config.head_dim
    frozen = adapter_parameters is not None
    weights = (4.0 if frozen else 6.0) * (layers * tokens + head * loss_tokens)
    return weights + 6.0 * (adapter_parameters or 0) * tokens + 12.0 * attention * attended


class _Backend(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class MetricLog:
    """Appends one JSON object a step to `<folder>/metrics.jsonl` and passes it on to the trackers.

    After a resume at `last_step`, lines of later steps are dropped first: those steps run again.
    """

    def __init__(
        self, folder: Path, trackers: Sequence[Tracker] = (), last_step: int = 0, config: Any = None
    ):
        self.path = folder / "metrics.jsonl"
        kept = (
            [row for row in read_metrics(self.path) if row["step"] <= last_step] if self.path.exists() else []
        )
        write_text_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a", buffering=1)
        self._backends = [_BACKENDS[name](folder, config) for name in trackers]

    def write(self, values: Mapping[str, Any]) -> None:
        """`values` has an integer `step`; a number that is not finite is written as a string, so that the file stays JSON."""
        clean = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps(clean) + "\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and k != "step"}
        for backend in self._backends:
            backend.log(numbers, values["step"])

    def close(self) -> None:
        self._file.close()
        for backend in self._backends:
            backend.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a killed process left half-written is dropped."""
    lines = Path(path).read_text().split("\n")
    return list(_whole(lines))


class StepLog:
    """Appends JSON rows with a `step`; after a resume at `last_step` the rows of later steps are dropped first."""

    def __init__(self, path: Path, last_step: int):
        if path.exists():
            with atomic_path(path) as kept, kept.open("w") as out:
                for row in read_metrics(path):
                    if row["step"] <= last_step:
                        out.write(json.dumps(row) + "\n")
        self._file = path.open("a")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes all rows and flushes, so that a reader of the file sees whole steps."""
        for row in rows:
            self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        if line:
            try:
                yield json.loads(line)
            except ValueError:
                return


class _TensorBoard:
    def __init__(self, folder: Path, config: Any):
        module = _import(_PACKAGES["tensorboard"], "tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _ExperimentTracker:
    """wandb or trackio, which have the same three calls."""

    def __init__(self, name: str, folder: Path, config: Any):
        self._module = _import(_PACKAGES[name], name)
        self._module.init(project="dcore_jax", name=folder.name, config=config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


_BACKENDS: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "wandb": lambda folder, config: _ExperimentTracker("wandb", folder, config),
    "trackio": lambda folder, config: _ExperimentTracker("trackio", folder, config),
}


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Raises UserError, saying what to install, where a tracker's package is missing; call it before data and model are read."""
    for name in trackers:
        _import(_PACKAGES[name], name)


_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def _import(module: str, tracker: str) -> Any:

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"tracker {tracker} needs the package {module}: pip install {module}") from None
