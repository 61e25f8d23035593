"""The trainer's weights to servers: a snapshot in Hugging Face names, its coverage, and two ways to have it loaded.

`transfer` speaks vLLM's weight-transfer interface (pause, start, update, finish, resume); `disk` asks each worker for a reload.
Both read the snapshot's safetensors files, so its folder must be one that the servers see.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcore_jax.engines.vllm.answers import Question
from dcore_jax.engines.vllm.canary import Canary, Reference, Seen, check_canary
from dcore_jax.engines.vllm.client import Client
from dcore_jax.engines.vllm.pool import Ill, Server
from dcore_jax.engines.vllm.server import EXTENSION
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, ModelConfig
from dcore_jax.weights import export_decoder, parameters

SyncName = Literal["transfer", "disk"]
_LOAD_TIMEOUT = 1800.0  # seconds for a server to load a snapshot
_PUSH_FAULTS = 3  # faults of a living server in a push before the run stops


@dataclass(frozen=True)
class Target:
    """The weights that servers should hold."""

    version: int
    name: str  # what a server calls them: unique to this run and version, unknown to a server that was started again
    snapshot: Path
    reference: Reference
    before: Reference | None  # of the version before
    dtype: str  # the coarser of the engine's and the trainer's: how far they may be apart


def expected_tensors(config: ModelConfig) -> set[str]:
    """The Hugging Face names that a snapshot of the model holds."""
    return {name for row in parameters(config) for name in row.tensor_names(config.num_layers)}


def check_coverage(ours: Collection[str], theirs: Collection[str], where: str) -> None:
    """Raises UserError unless what we send is exactly what the engine's model has."""
    missing, unknown = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    if missing or unknown:
        parts = [f"{len(missing)} that we do not send ({_some(missing)})"] if missing else []
        parts += [f"{len(unknown)} of ours that it lacks ({_some(unknown)})"] if unknown else []
        raise UserError(f"{where}: its model is another one than the trainer's: it has {' and '.join(parts)}")


def write_snapshot(decoder: Decoder, folder: Path, dtype: str) -> Path:
    """The decoder as a folder that vLLM loads; one that a killed run left half-used is made again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return export_decoder(decoder, folder, dtype=dtype)


class Pusher:
    """Brings servers to a target and makes sure that they hold it."""

    def __init__(self, client: Client, config: ModelConfig, canary: Canary, how: SyncName):
        self._client, self._how = client, how
        self._tensors, self._canary = expected_tensors(config), canary
        self._faults: dict[Server, int] = {}
        self.gaps: dict[str, float] = {}  # the canary's mean difference by server, after its last push

    async def holds(self, server: Server, target: Target) -> bool:
        """Whether the server says that it holds the target; raises Ill."""
        found = await self._client.call(server, "GET", "/weight_info")
        return isinstance(found, dict) and found.get("weight_version") == target.name

    async def push(self, server: Server, target: Target) -> None:
        """Loads the target into the server and checks its canary.

        Raises:
          Ill: the server failed on the way; it may be asked again.
          UserError: it cannot take these weights, or answers differently from the trainer.
        """
        try:
            await self._load(server, target)
        except Ill as illness:
            self._faults[server] = self._faults.get(server, 0) + 1
            if str(illness).startswith("HTTP") and self._faults[server] >= _PUSH_FAULTS:
                raise UserError(
                    f"{server.url}: cannot load weight update {target.version}: {illness}"
                ) from None
            raise
        self._faults[server] = 0
        await self.check(server, target)

    async def check(self, server: Server, target: Target | None) -> None:
        """Has the server answer the canary, and right where a target says what is right; raises as `push`."""
        seen = await self._see(server)
        if target is not None:
            self.gaps[server.url] = check_canary(
                seen,
                target.reference,
                target.before,
                dtype=target.dtype,
                version=target.version,
                where=server.url,
            )

    async def _load(self, server: Server, target: Target) -> None:
        rpc = self._client.call
        names = await self._workers(server, "dcore_tensor_names", {}, 60.0)
        for found in names:
            check_coverage(self._tensors, found, server.url)
        folder = str(target.snapshot.absolute())
        if self._how == "disk":
            await self._workers(server, "dcore_reload", {"folder": folder}, _LOAD_TIMEOUT)
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

    async def _workers(self, server: Server, method: str, arguments: dict[str, Any], timeout: float) -> list:
        body = {"method": method, "kwargs": arguments, "timeout": timeout}
        try:
            found = await self._client.call(server, "POST", "/collective_rpc", body, timeout=timeout)
        except Ill as illness:
            hint = f"; was it started with --worker-extension-cls {EXTENSION}?"
            raise Ill(f"{illness}{hint if str(illness).startswith('HTTP') else ''}") from None
        results = found.get("results") if isinstance(found, dict) else None
        if not isinstance(results, list) or not results or not all(results):
            raise Ill(f"HTTP answer without results from {method}")
        return results

    async def _see(self, server: Server) -> Seen:
        body = canary_body(self._canary, server.model)
        payload = await self._client.call(server, "POST", "/inference/v1/generate", body, timeout=300.0)
        try:
            return read_canary(self._canary, payload)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Ill(f"HTTP answer to the canary that cannot be read ({error!r})") from None


def canary_body(canary: Canary, model: str) -> dict[str, Any]:
    """The canary as a body of `/inference/v1/generate`."""
    question = Question(canary.request, 1, frozenset(), canary.vocab_size)
    body = question.body(model)
    return {**body, "sampling_params": {**body["sampling_params"], "prompt_logprobs": 0}}


def read_canary(canary: Canary, payload: Any) -> Seen:
    """What the engine answered; raises KeyError, TypeError, ValueError or IndexError where that cannot be read."""
    (choice,) = payload["choices"]
    rows = payload["prompt_logprobs"][1:]
    prompt = [float(row[str(token)]["logprob"]) for row, token in zip(rows, canary.ids[1:], strict=True)]
    return Seen(prompt, int(choice["token_ids"][0]), float(choice["logprobs"]["content"][0]["logprob"]))


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
