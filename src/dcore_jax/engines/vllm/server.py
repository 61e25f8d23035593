"""vLLM servers of our own: on loopback, behind a random key, with their log in the run folder; none outlives the run."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dcore_jax.errors import UserError

# The part inside vLLM's workers needs nothing of dcore_jax: its folder on PYTHONPATH is enough, whatever environment vLLM has.
WORKER = Path(__file__).with_name("worker")
EXTENSION = "dcore_vllm_worker.WorkerExtension"
TRANSFER_BACKEND = "dcore_file"

# Nothing leaves the machine, and the calls that update weights exist.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}
# vLLM's CPU build: one thread a process unless told otherwise (many are far slower for small models), no compilation.
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True)
class ServerPlan:
    """How a server of our own is started."""

    model: Path  # Hugging Face folder
    logs: Path  # folder
    max_length: int  # tokens of prompt and continuation
    dtype: str = "auto"  # float32 | bfloat16 | float16 | auto: the folder's
    slots: int = 256  # sequences that are decoded at the same time
    python: str = sys.executable  # of the environment that has vLLM
    arguments: tuple[str, ...] = ()  # more of `vllm serve`'s, as --tensor-parallel-size=8
    restarts: int = 5  # after which a server that dies stops the run

    def command(self, port: int) -> list[str]:
        settings = {
            "model": str(self.model),
            "served-model-name": "policy",
            "host": "127.0.0.1",
            "port": str(port),
            "dtype": self.dtype,
            "max-model-len": str(self.max_length),
            "max-num-seqs": str(self.slots),
            "generation-config": "vllm",  # no sampling defaults from the model's folder
            "logprobs-mode": "processed_logprobs",  # after temperature
            "max-logprobs": "1",
            "worker-extension-cls": EXTENSION,
            "weight-transfer-config": json.dumps({"backend": TRANSFER_BACKEND}),
        }
        flags = ["enable-prefix-caching", "enable-scale-out"]  # scale-out: token ids in, token ids out
        if not has_cuda():
            flags += ["enforce-eager", "distributed-executor-backend=uni"]
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        return command + [f"--{name}" for name in flags] + list(self.arguments)


class OwnServer:
    """One server process. `start` may be called again after its end; the address and the key stay."""

    def __init__(self, plan: ServerPlan, number: int = 0):
        self._plan = plan
        self.key = secrets.token_urlsafe(24)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = plan.logs / f"vllm_{number}.log"
        self.starts = 0
        self._keeper: subprocess.Popen | None = None
        self.group = 0  # process group of the server; 0 before the first start

    def start(self) -> None:
        """Starts the process, not waiting for it to serve.

        Raises:
          UserError: it was started too often.
        """
        self.stop()
        if self.starts > self._plan.restarts:
            raise UserError(
                f"the vLLM server ended {self.starts} times{self.last_words()}; the log is {self.log}"
            )
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        keeper = Path(__file__).with_name("keeper.py")
        environment = server_environment(os.environ, self.key)
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-S", str(keeper), *self._plan.command(self.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        self.group = int(self._keeper.stdout.readline() or 0)

    @property
    def alive(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def stop(self) -> None:
        """Ends the process and all of its children at once."""
        if self._keeper is None:
            return
        if self.group and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()
        self._keeper, self.group = None, 0

    def last_words(self) -> str:
        """The last error line of the log, as part of a sentence; empty where there is none."""
        try:
            lines = self.log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        errors = [line for line in lines if "Error" in line]
        found = (errors or [line for line in lines if line.strip()] or [""])[-1].strip()
        return f" ({found[-300:]})" if found else ""


def server_environment(environment: Mapping[str, str], key: str) -> dict[str, str]:
    """The environment of a server: ours, the key (not on the command line, where others could read it), and vLLM's settings."""
    settings = {**_ENVIRONMENT, **({} if has_cuda() else CPU_ENVIRONMENT)}
    path = os.pathsep.join(filter(None, (str(WORKER), environment.get("PYTHONPATH"))))
    fixed = {"VLLM_API_KEY": key, "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": path}
    return {**settings, **environment, **fixed}


def has_cuda() -> bool:
    """Whether an NVIDIA driver is here; asks no library, so that none initialises the device."""
    return os.path.exists("/proc/driver/nvidia/version")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
