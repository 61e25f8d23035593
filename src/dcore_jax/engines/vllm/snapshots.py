"""Weights on disk for vLLM servers: a whole model in Hugging Face names, or a LoRA policy's adapters and, once, their base."""

import shutil
from pathlib import Path

from flax import nnx

from dcore_jax.lora import LoraConfig, adapter_scale, export_adapter, merged_decoder, partition
from dcore_jax.models import Decoder
from dcore_jax.weights import export_decoder

_FILE_BYTES = 10**9  # so that several files are written at the same time


class Snapshots:
    """Writes each version of the weights into a folder that servers see under the same path.

    Of a decoder with adapters the frozen base is written once, in the engine's dtype and, where it is stored in nf4, as that
    rounds it; after that a version is its adapters, in the format of peft. The server adds them to the base as it loads it.
    """

    def __init__(self, folder: Path, run_id: str, dtype: str):
        self._folder, self._run_id, self._dtype = folder, run_id, dtype
        self._base: Path | None = None

    def write(self, decoder: Decoder, name: str) -> tuple[Path, Path | None]:
        """The folders of this version's snapshot and of its base; None for a decoder without adapters."""
        folder = self._new(f"weights-{name}")
        if not (scale := adapter_scale(decoder)):
            return export_decoder(decoder, folder, dtype=self._dtype, max_shard_bytes=_FILE_BYTES), None
        if self._base is None:
            base = merged_decoder(decoder, dtype=decoder.compute.dtype, adapters=False)
            self._base = export_decoder(base, self._new(f"base-{self._run_id}"), dtype=self._dtype)
        adapters, _ = partition(nnx.state(decoder, nnx.Param))
        lora = _config_of(adapters, scale)
        return export_adapter(decoder.config, adapters, lora, folder, base=self._base.name), self._base

    def remove(self, snapshot: Path) -> None:
        """Deletes the snapshot of a version that no server needs any more."""
        shutil.rmtree(snapshot, ignore_errors=True)

    def close(self, snapshot: Path | None) -> None:
        """Deletes the base and the last snapshot."""
        for folder in filter(None, (snapshot, self._base)):
            shutil.rmtree(folder, ignore_errors=True)

    def _new(self, name: str) -> Path:
        """An absent folder of that name, where a killed run may have left one."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder


def _config_of(adapters: nnx.State, scale: float) -> LoraConfig:
    """Rank, alpha and targets as an adapted decoder has them."""
    found = {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(adapters)}
    rank = next(shape[-1] for path, shape in found.items() if path[-1] == "a")
    targets = {f"{path[-3]}_proj" for path in found}
    return LoraConfig(rank=rank, alpha=scale * rank, targets=tuple(sorted(targets)))  # type: ignore[arg-type]
