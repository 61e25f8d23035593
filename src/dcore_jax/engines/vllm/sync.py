"""Weight sync from the trainer to vLLM servers: a snapshot in Hugging Face names, a check of those names, two ways to load it.

`transfer` uses vLLM's weight-transfer interface (pause, start, update, finish, resume); `disk` calls `reload_weights` in each
worker. Both read the snapshot's safetensors files, so servers must see its folder under the same path.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dcore_jax.engines.vllm.canary import Canary, EngineLogprobs, Reference, check_canary
from dcore_jax.engines.vllm.client import Client
from dcore_jax.engines.vllm.pool import Server, ServerUnavailable
from dcore_jax.engines.vllm.protocol import PreparedRequest
from dcore_jax.engines.vllm.server import EXTENSION
from dcore_jax.errors import UserError, check_choice
from dcore_jax.models import Decoder, ModelConfig
from dcore_jax.weights import export_decoder, parameters

SyncName = Literal["transfer", "disk"]
_LOAD_TIMEOUT = 1800.0  # seconds for a server to load a snapshot
_MAX_PUSH_FAULTS = 3  # HTTP errors of a server in pushes, in a row, before the run stops


@dataclass(frozen=True)
class Target:
    """The weights that servers should hold."""

    version: int
    name: str  # the weight version as servers report it: unique to this run and version, so a restarted server cannot have it
    snapshot: Path
    reference: Reference
    previous: Reference | None  # of the version before
    dtype: str  # the coarser of the engine's and the trainer's: decides the canary's tolerance


def expected_tensors(config: ModelConfig) -> set[str]:
    """The Hugging Face names that a snapshot of the model holds."""
    return {name for row in parameters(config) for name in row.tensor_names(config.num_layers)}


def check_coverage(ours: Collection[str], theirs: Collection[str], name: str) -> None:
    """Raises UserError unless the trainer's tensor names are exactly those of the engine's model."""
    missing, unknown = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    if missing or unknown:
        parts = [f"{len(missing)} that we do not send ({_shorten(missing)})"] if missing else []
        parts += [f"{len(unknown)} of ours that it lacks ({_shorten(unknown)})"] if unknown else []
        raise UserError(f"{name}: its model is another one than the trainer's: it has {' and '.join(parts)}")


def write_snapshot(decoder: Decoder, folder: Path, dtype: str) -> Path:
    """Exports the decoder as a Hugging Face folder that vLLM loads, over one that a killed run may have left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Files of 1 GB, so that several are written at the same time.
    return export_decoder(decoder, folder, dtype=dtype, max_shard_bytes=10**9)


class WeightSync:
    """Pushes weights to servers and verifies that they hold them.

    Args:
      client: of the servers.
      config: the model's; decides the expected tensor names.
      canary: the prompt that verifies a push.
      method: how servers load a snapshot (see the module's docstring).

    Raises:
      UserError: an unknown method.
    """

    def __init__(self, client: Client, config: ModelConfig, canary: Canary, method: SyncName):
        check_choice("sync", method, get_args(SyncName))
        self._client, self._method = client, method
        self._tensors, self._canary = expected_tensors(config), canary
        self._faults: dict[Server, int] = {}
        self.gaps: dict[
            str, float
        ] = {}  # by server URL: the canary's mean difference after its last push, nats

    async def holds(self, server: Server, target: Target) -> bool:
        """Whether the server reports the target as its weight version; raises ServerUnavailable."""
        found = await self._client.call(server, "GET", "/weight_info")
        return isinstance(found, dict) and found.get("weight_version") == target.name

    async def push(self, server: Server, target: Target) -> None:
        """Loads the target into the server and checks the canary.

        Raises:
          ServerUnavailable: the server failed on the way; a retry may succeed.
          UserError: it cannot load these weights, or its canary differs from the trainer's.
        """
        try:
            await self._load(server, target)
        except ServerUnavailable as error:
            self._faults[server] = self._faults.get(server, 0) + 1
            # One that keeps responding with errors will never load these weights; one without a connection may come back.
            if str(error).startswith("HTTP") and self._faults[server] >= _MAX_PUSH_FAULTS:
                raise UserError(
                    f"{server.url}: cannot load weight update {target.version}: {error}"
                ) from None
            raise
        self._faults[server] = 0
        await self.check(server, target)

    async def check(self, server: Server, target: Target | None) -> None:
        """Runs the canary on the server and, where there is a target, compares it with the trainer's; raises as `push`."""
        logprobs = await self._run_canary(server)
        if target is not None:
            self.gaps[server.url] = check_canary(
                logprobs,
                target.reference,
                target.previous,
                dtype=target.dtype,
                version=target.version,
                name=server.url,
            )

    async def _load(self, server: Server, target: Target) -> None:
        rpc = self._client.call
        # Checked before anything is loaded, so that a server which is refused still holds its old weights.
        names = await self._call_workers(server, "dcore_tensor_names", {}, 60.0)
        for found in names:
            check_coverage(self._tensors, found, server.url)
        folder = str(target.snapshot.absolute())
        if self._method == "disk":
            await self._call_workers(server, "dcore_reload", {"folder": folder}, _LOAD_TIMEOUT)
            # Cached keys and values of the old weights must not serve the new ones.
            await rpc(server, "POST", "/reset_prefix_cache")
            await rpc(server, "POST", "/update_weight_version", {"new_version": target.name})
            return
        await rpc(server, "POST", "/pause?mode=abort")
        await rpc(server, "POST", "/init_weight_transfer_engine", {"init_info": {}})
        await rpc(server, "POST", "/start_weight_update")
        update = {"update_info": {"folder": folder}}
        await rpc(server, "POST", "/update_weights", update, timeout=_LOAD_TIMEOUT)
        finish = {"weight_version": target.name}
        await rpc(server, "POST", "/finish_weight_update", finish, timeout=_LOAD_TIMEOUT)
        await rpc(server, "POST", "/reset_prefix_cache")
        await rpc(server, "POST", "/resume")

    async def _call_workers(
        self, server: Server, method: str, arguments: dict[str, Any], timeout: float
    ) -> list:
        """Calls a method of WorkerExtension in every worker of the server; their results."""
        body = {"method": method, "kwargs": arguments, "timeout": timeout}
        try:
            found = await self._client.call(server, "POST", "/collective_rpc", body, timeout=timeout)
        except ServerUnavailable as error:
            hint = f"; was it started with --worker-extension-cls {EXTENSION}?"
            raise ServerUnavailable(f"{error}{hint if str(error).startswith('HTTP') else ''}") from None
        results = found.get("results") if isinstance(found, dict) else None
        if not isinstance(results, list) or not results or not all(results):
            raise ServerUnavailable(f"HTTP response without results from {method}")
        return results

    async def _run_canary(self, server: Server) -> EngineLogprobs:
        body = canary_body(self._canary, server.model)
        payload = await self._client.call(server, "POST", "/inference/v1/generate", body, timeout=300.0)
        try:
            return read_canary(self._canary, payload)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServerUnavailable(f"HTTP response to the canary that cannot be read ({error!r})") from None


def canary_body(canary: Canary, model: str) -> dict[str, Any]:
    """The canary as a request body of `/inference/v1/generate`."""
    body = PreparedRequest(canary.request, 1, frozenset(), canary.vocab_size).body(model)
    return {**body, "sampling_params": {**body["sampling_params"], "prompt_logprobs": 0}}


def read_canary(canary: Canary, payload: Any) -> EngineLogprobs:
    """The engine's log-probabilities in a response; raises KeyError, TypeError, ValueError or IndexError where there are none."""
    (choice,) = payload["choices"]
    rows = payload["prompt_logprobs"][1:]
    prompt = [float(row[str(token)]["logprob"]) for row, token in zip(rows, canary.ids[1:], strict=True)]
    return EngineLogprobs(
        prompt, int(choice["token_ids"][0]), float(choice["logprobs"]["content"][0]["logprob"])
    )


def _shorten(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
