"""What the loop writes down after each step."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dcore_jax.data.packing import PackedBatch, WeightedBatch, packing_fill
from dcore_jax.errors import UserError
from dcore_jax.metrics import MetricLog, peak_flops, training_flops
from dcore_jax.progress import Progress
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.step import StepMetrics
from dcore_jax.training import TrainSetup
from dcore_jax.training.run_folder import last_checkpoint


class Watch:
    """Writes steps down: metrics, progress bar, and the stop at a loss that is not finite."""

    def __init__(self, config: SFTConfig, setup: TrainSetup, log: MetricLog | None, output: Path):
        self._model, self._schedule, self._log, self._output = setup.model_config, setup.schedule, log, output
        self._adapters = setup.trained_parameters if setup.lora else None
        device = jax.devices()[0]
        per_device = config.peak_tflops * 1e12 if config.peak_tflops else peak_flops(device.device_kind)
        self._peak = per_device * setup.mesh.size if per_device else None
        self._before = time.perf_counter()
        self.first: float | None = None
        self.last: float | None = None

    def record(
        self, step: int, metrics: StepMetrics, packed: PackedBatch | WeightedBatch, bar: Progress
    ) -> None:
        values = jax.device_get(metrics)
        now = time.perf_counter()
        seconds, self._before = now - self._before, now
        loss = float(values.loss)
        row = {
            "step": step,
            "loss": loss,
            "learning_rate": float(self._schedule(step - 1)),
            "gradient_norm": float(values.gradient_norm),
            "tokens_per_second": float(values.tokens) / seconds,
            "loss_tokens_per_second": float(values.loss_tokens) / seconds,
            "loss_tokens": int(values.loss_tokens),
            "packing_fill": packing_fill(packed),
            "seconds": seconds,
        }
        if self._peak is not None:
            flops = training_flops(
                self._model,
                int(values.tokens),
                int(values.loss_tokens),
                int(values.attended),
                adapter_parameters=self._adapters,
            )
            row["mfu"] = flops / seconds / self._peak
        if self._log is not None:
            self._log.write(row)
        if not values.finite:
            self._stop(step, row, packed)
        self.first, self.last = loss if self.first is None else self.first, loss
        shown = {
            "loss": f"{loss:.4f}",
            "lr": f"{row['learning_rate']:.1e}",
            "loss tok/s": f"{row['loss_tokens_per_second']:,.0f}",
        }
        if "mfu" in row:
            shown["MFU"] = f"{row['mfu']:.1%}"
        bar.set_postfix({**shown, "fill": f"{row['packing_fill']:.0%}"})
        bar.update()

    def _stop(self, step: int, row: dict[str, Any], packed: PackedBatch | WeightedBatch) -> None:
        path = self._output / f"nonfinite_step_{step}.npz"
        if jax.process_index() == 0:
            np.savez_compressed(path, **packed._asdict())
        raise UserError(
            f"step {step}: loss {row['loss']:.4g} and gradient norm {row['gradient_norm']:.4g} are not both finite; "
            f"the batch is in {path}, {last_checkpoint(self._output)}"
        )
