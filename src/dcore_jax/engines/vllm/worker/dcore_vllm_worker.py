"""The part that runs inside vLLM's worker processes; it imports nothing of dcore_jax, which need not be installed there.

Weights arrive as safetensors files or, in process, as an iterator; both go through vLLM's own loader, by Hugging Face names. What
a reload leaves behind of a tied output head is mended here.
"""

from collections.abc import Iterable
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
    """The Hugging Face names of all tensors that the model wants, fused ones taken apart; a tied head is none."""
    packed = getattr(model, "packed_modules_mapping", {})
    names = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        *above, module, kind = name.split(".")
        names |= {".".join([*above, part, kind]) for part in packed.get(module, [module])}
    if getattr(model.config, "tie_word_embeddings", False):
        names.discard("lm_head.weight")
    return sorted(names)


def repack_tied_head(model: Any) -> None:
    """vLLM's CPU build multiplies by a packed copy of the head, which a reload of tied weights leaves as it was: pack again."""
    head, body = getattr(model, "lm_head", None), getattr(model, "model", None)
    embedding = getattr(body, "embed_tokens", None)
    if head is None or embedding is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head is not embedding and hasattr(head, "cpu_linear"):
        with torch.no_grad():
            head.weight = embedding.weight
            head.quant_method.process_weights_after_loading(head)


class WorkerExtension:
    """Mixed into vLLM's worker by --worker-extension-cls; called by name, over /collective_rpc or LLM.collective_rpc."""

    def dcore_tensor_names(self) -> list[str]:
        return tensor_names(self._dcore_model())

    def dcore_reload(self, folder: str) -> str:
        """Loads a Hugging Face folder's weights in place of the ones in use."""
        self.reload_weights(weights_path=folder)  # type: ignore[attr-defined]
        repack_tied_head(self._dcore_model())
        return folder

    def dcore_load(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Loads weights from an iterator of the same process."""
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


class FileTransferEngine(WeightTransferEngine[FileInit, FileUpdate]):
    """A backend of vLLM's weight-transfer interface that reads safetensors files of a folder both sides see."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: Any) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update: FileUpdate) -> None:
        for path in sorted(Path(update.folder).glob("*.safetensors")):
            with safe_open(str(path), "pt") as file, torch.no_grad():
                self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        pass


if TRANSFER_BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, FileTransferEngine)
