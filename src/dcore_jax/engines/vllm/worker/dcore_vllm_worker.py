"""Weight loading inside vLLM's worker processes. Imports nothing of dcore_jax, which need not be installed there.

Weights arrive as safetensors files or, in process, as an iterator; both go through vLLM's own loader, by Hugging Face names. Of a
LoRA policy only the adapters arrive, and are added here to a base that lies on disk.
A tied output head, which a reload leaves as it was, is packed again.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

TRANSFER_BACKEND = "dcore_file"  # as in dcore_jax.engines.vllm.server


def tensor_names(model: Any) -> list[str]:
    """The Hugging Face names of the model's tensors: fused ones count as their parts, a tied output head does not count."""
    packed = getattr(model, "packed_modules_mapping", {})
    names = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        *above, module, kind = name.split(".")
        names |= {".".join([*above, part, kind]) for part in packed.get(module, [module])}
    if getattr(model.config, "tie_word_embeddings", False):
        names.discard("lm_head.weight")
    return sorted(names)


def repack_tied_head(model: Any) -> None:
    """Packs a tied output head again: vLLM's CPU build multiplies by a packed copy, which a reload does not update."""
    head, body = getattr(model, "lm_head", None), getattr(model, "model", None)
    embedding = getattr(body, "embed_tokens", None)
    if head is None or embedding is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head is not embedding and hasattr(head, "cpu_linear"):
        with torch.no_grad():
            head.weight = embedding.weight
            head.quant_method.process_weights_after_loading(head)


def folder_tensors(folder: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a folder's safetensors files by name, one in memory at a time."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def merged_tensors(base: str, adapter: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a base folder with an adapter of peft's format added: W + alpha / r * B A in float32, in W's dtype."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    scale, parts = config["lora_alpha"] / config["r"], dict(folder_tensors(adapter))
    for name, weight in folder_tensors(base):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = parts.pop(f"{module}.lora_A.weight", None), parts.pop(f"{module}.lora_B.weight", None)
        if a is not None and b is not None:
            weight = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
        yield name, weight
    if parts:
        raise ValueError(f"{adapter}: adapters of matrices that {base} does not have: {sorted(parts)[:3]}")


class WorkerExtension:
    """Methods that --worker-extension-cls adds to vLLM's worker, called by name through /collective_rpc or LLM.collective_rpc."""

    def dcore_tensor_names(self) -> list[str]:
        return tensor_names(self._dcore_model())

    def dcore_reload(self, folder: str, base: str = "") -> str:
        """Replaces the weights by those of a Hugging Face folder, or by those of `base` plus its adapters; returns the folder."""
        if base:
            self.reload_weights(weights_iterator=merged_tensors(base, folder))  # type: ignore[attr-defined]
        else:
            self.reload_weights(weights_path=folder)  # type: ignore[attr-defined]
        repack_tied_head(self._dcore_model())
        return folder

    def dcore_load(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Replaces the weights by those of an iterator in the same process."""
        self.reload_weights(weights_iterator=iter(weights))  # type: ignore[attr-defined]
        repack_tied_head(self._dcore_model())

    def _dcore_model(self) -> Any:
        return self.model_runner.get_model()  # type: ignore[attr-defined]


@dataclass
class FileInit(WeightTransferInitInfo):
    pass


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    folder: str = ""
    base: str = ""


class FileTransferEngine(WeightTransferEngine[FileInit, FileUpdate]):
    """A backend of vLLM's weight-transfer interface that reads safetensors files from a folder which both sides see."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: Any) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update: FileUpdate) -> None:
        tensors = merged_tensors(update.base, update.folder) if update.base else folder_tensors(update.folder)
        with torch.no_grad():
            self.model.load_weights(tensors)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        pass


if TRANSFER_BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, FileTransferEngine)
