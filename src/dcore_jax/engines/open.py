"""One door to every engine, by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from dcore_jax.engines.engine import Engine
from dcore_jax.engines.native import NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, read_model_config
from dcore_jax.weights import load_decoder

EngineName = Literal["native", "vllm", "vllm-server"]


def open_engine(
    name: EngineName,
    folder: str | Path,
    *,
    max_length: int,
    decoder: Decoder | None = None,
    eos_token_ids: Sequence[int] = (),
    slots: int = 64,
    servers: Sequence[str] = (),
    output: str | Path = ".",
    dtype: str | None = None,
    mesh: Mesh | None = None,
    first_length: int = 0,
    weight_version: int = 0,
    server_arguments: Sequence[str] = (),
    progress: bool = False,
) -> Engine:
    """The engine of that name, ready to generate. Close it when done.

    Args:
      name: native: in JAX, in this process; vllm: vLLM in this process; vllm-server: vLLM over HTTP.
      folder: the model's Hugging Face folder.
      max_length: most tokens of prompt and continuation together.
      decoder: the weights to sample from, where they are not the folder's. A vLLM engine gets them pushed and checked.
      slots: sequences decoded at the same time, by each server.
      servers: for vllm-server: addresses as http://host:port, all holding the folder's model; none: one is started here.
      output: folder for the logs of servers and for weights on their way to them.
      dtype: what the engine computes in; by default the decoder's compute dtype, else float32.
      mesh: of the native engine.
      first_length: of the native engine's cache.
      weight_version: of the weights it starts with.
      server_arguments: more arguments of a vLLM server that is started here.
      progress: show a bar while many requests are under way (vLLM).

    Raises:
      UserError: an unknown name, a package that is missing, or whatever the engine cannot work with.
    """
    if name not in ("native", "vllm", "vllm-server"):
        raise UserError(f"engine {name!r} is unknown; choose native, vllm or vllm-server")
    if servers and name != "vllm-server":
        raise UserError(f"servers are given but the engine is {name!r}; use --engine vllm-server")
    if name == "native":
        return NativeEngine(
            load_decoder(folder) if decoder is None else decoder,
            slots=slots,
            max_length=max_length,
            eos_token_ids=eos_token_ids,
            mesh=mesh,
            first_length=first_length,
            weight_version=weight_version,
        )
    kind = dtype or ("float32" if decoder is None else np.dtype(decoder.compute.dtype).name)
    if name == "vllm":
        from dcore_jax.engines.vllm.in_process import InProcessEngine

        engine: Engine = InProcessEngine(
            folder,
            max_length=max_length,
            eos_token_ids=eos_token_ids,
            dtype=kind,
            slots=slots,
            progress=progress,
            weight_version=weight_version,
        )
    else:
        try:
            from dcore_jax.engines.vllm.engine import ServerEngine
        except ImportError as error:
            raise UserError(
                f"engine vllm-server needs {error.name}; install dcore-jax[vllm-client], or see docs/vllm.md"
            ) from None
        from dcore_jax.engines.vllm.server import OwnServer, ServerPlan

        logs = Path(output) / "vllm"
        plan = ServerPlan(
            Path(folder), logs, max_length, dtype=kind, slots=slots, arguments=tuple(server_arguments)
        )
        engine = ServerEngine(
            servers or [OwnServer(plan)],
            read_model_config(Path(folder)),
            max_length=max_length,
            eos_token_ids=eos_token_ids,
            dtype=kind,
            folder=logs,
            progress=progress,
            weight_version=weight_version,
        )
    if decoder is not None:
        try:
            engine.update_weights(decoder, weight_version)
        except BaseException:
            engine.close()
            raise
    return engine
