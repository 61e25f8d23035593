"""One door to every engine, by the name in its config."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from dcore_jax.engines.config import EngineConfig
from dcore_jax.engines.engine import Engine
from dcore_jax.engines.native import NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, read_model_config
from dcore_jax.weights import load_decoder


def check_engine_installed(config: EngineConfig) -> None:
    """Raises UserError, saying what to install, where a package that the engine needs is missing.

    Call it before data and model are read: minutes of work should not end at an import.
    """
    from importlib.util import find_spec

    needs = {"native": [], "vllm": ["vllm"], "vllm-server": ["aiohttp"]}[config.name]
    if config.name == "vllm-server" and not config.servers:
        needs.append("vllm")
    for package in needs:
        if find_spec(package) is None:
            extra = "vllm-client" if package == "aiohttp" else "vllm"
            raise UserError(
                f"engine {config.name} needs the package {package}: pip install 'dcore-jax[{extra}]', see docs/vllm.md"
            )


def open_engine(
    config: EngineConfig,
    folder: str | Path,
    *,
    max_length: int,
    decoder: Decoder | None = None,
    eos_token_ids: Sequence[int] = (),
    output: str | Path = ".",
    dtype: str | None = None,
    mesh: Mesh | None = None,
    weight_version: int = 0,
    progress: bool = False,
    steps_per_dispatch: int = 32,
) -> Engine:
    """The engine of that config, ready to generate. Close it when done.

    Args:
      folder: the model's Hugging Face folder.
      max_length: most tokens of prompt and continuation together.
      decoder: the weights to sample from, where they are not the folder's. A vLLM engine gets them pushed and checked.
      eos_token_ids: end every sample, unless it says ignore_eos.
      output: folder for the logs of servers and for weights on their way to them.
      dtype: what the engine computes in; by default the decoder's compute dtype, else float32.
      mesh: of the native engine.
      weight_version: of the weights it starts with.
      progress: show a bar while many requests are under way (vLLM).
      steps_per_dispatch: of the native engine: tokens per slot between two looks at what was sampled.

    Raises:
      UserError: a package that is missing, or whatever the engine cannot work with.
    """
    check_engine_installed(config)
    if config.name == "native":
        return NativeEngine(
            load_decoder(folder) if decoder is None else decoder,
            slots=config.slots,
            max_length=max_length,
            eos_token_ids=eos_token_ids,
            mesh=mesh,
            steps_per_dispatch=steps_per_dispatch,
            first_length=config.cache_length,
            weight_version=weight_version,
        )
    kind = dtype or ("float32" if decoder is None else np.dtype(decoder.compute.dtype).name)
    engine = _vllm_engine(
        config, Path(folder), max_length, eos_token_ids, Path(output), kind, weight_version, progress
    )
    if decoder is not None:
        try:
            engine.update_weights(decoder, weight_version)
        except BaseException:
            engine.close()
            raise
    return engine


def _vllm_engine(
    config: EngineConfig,
    folder: Path,
    max_length: int,
    eos_token_ids: Sequence[int],
    output: Path,
    dtype: str,
    weight_version: int,
    progress: bool,
) -> Engine:
    # Imported here: vLLM and aiohttp are extras.
    if config.name == "vllm":
        from dcore_jax.engines.vllm.in_process import InProcessEngine

        return InProcessEngine(
            folder,
            max_length=max_length,
            eos_token_ids=eos_token_ids,
            dtype=dtype,
            slots=config.slots,
            memory_fraction=config.memory,
            progress=progress,
            weight_version=weight_version,
        )
    from dcore_jax.engines.vllm.engine import ServerEngine
    from dcore_jax.engines.vllm.server import OwnServer, ServerPlan

    logs = output / "vllm"
    plan = ServerPlan(
        folder,
        logs,
        max_length,
        dtype=dtype,
        slots=config.slots,
        memory_fraction=config.memory,
        arguments=tuple(config.server_arguments),
    )
    return ServerEngine(
        config.servers or [OwnServer(plan)],
        read_model_config(folder),
        max_length=max_length,
        eos_token_ids=eos_token_ids,
        dtype=dtype,
        folder=logs,
        progress=progress,
        weight_version=weight_version,
    )
