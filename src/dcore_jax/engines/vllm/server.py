"""vLLM servers that this process starts: on loopback, behind a random key, with their log in the run folder.

Each runs under a supervisor process (`supervisor.py`), which ends it when this process is gone.
"""

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

# On the server's PYTHONPATH. The code inside vLLM's workers imports nothing of dcore_jax, which vLLM's environment need not have.
WORKER_FOLDER = Path(__file__).with_name("worker")
EXTENSION = "dcore_vllm_worker.WorkerExtension"
TRANSFER_BACKEND = "dcore_file"  # as in worker/dcore_vllm_worker.py

# Nothing leaves the machine: no downloads, no usage statistics.
_PRIVATE_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# vLLM's CPU build: one thread per process (more are far slower for small models) and no compilation.
_CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True)
class ServerPlan:
    """How a vLLM server is started.

    Raises:
      UserError: memory_fraction is not in (0, 1].
    """

    model: Path  # Hugging Face folder
    logs: Path  # folder
    max_length: int  # tokens of prompt and continuation
    dtype: str = "auto"  # float32 | bfloat16 | float16 | auto: the folder's
    slots: int = 256  # sequences decoded at the same time
    python: str = sys.executable  # of the environment that has vLLM
    arguments: tuple[str, ...] = ()  # more arguments of `vllm serve`, such as --tensor-parallel-size=8
    restarts: int = 5  # after so many a server that dies stops the run
    memory_fraction: float | None = None  # of the GPU, for vLLM's weights and cache; None: vLLM's default

    def __post_init__(self) -> None:
        check_memory_fraction(self.memory_fraction)

    def command(self, port: int) -> list[str]:
        """The command line of a server on this port."""
        settings = {
            "model": str(self.model),
            "served-model-name": "policy",
            "host": "127.0.0.1",
            "port": str(port),
            "dtype": self.dtype,
            "max-model-len": str(self.max_length),
            "max-num-seqs": str(self.slots),
            "generation-config": "vllm",  # no sampling defaults from the model's folder
            "logprobs-mode": "processed_logprobs",  # after temperature, as training needs them
            "max-logprobs": "1",
            "worker-extension-cls": EXTENSION,
            "weight-transfer-config": json.dumps({"backend": TRANSFER_BACKEND}),
        }
        if self.memory_fraction is not None:
            settings["gpu-memory-utilization"] = str(self.memory_fraction)
        flags = ["enable-prefix-caching", "enable-scale-out"]  # scale-out: token ids in, token ids out
        if not has_cuda():
            flags += ["enforce-eager", "distributed-executor-backend=uni"]
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        return command + [f"--{name}" for name in flags] + list(self.arguments)


class OwnServer:
    """One server process, started and restarted by us. Its address and key stay the same over restarts.

    Args:
      plan: how to start it.
      number: of this server among ours; names its log.
    """

    def __init__(self, plan: ServerPlan, number: int = 0):
        self._plan = plan
        self.key = secrets.token_urlsafe(24)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = plan.logs / f"vllm_{number}.log"
        self.starts = 0
        self._supervisor: subprocess.Popen | None = None
        self.process_group = 0  # of the server and its children; 0 before the first start

    def start(self) -> None:
        """Starts the process, or restarts it; does not wait until it serves.

        Raises:
          UserError: it was started more often than the plan's `restarts` allow.
        """
        self.stop()
        if self.starts > self._plan.restarts:
            raise UserError(
                f"the vLLM server ended {self.starts} times{self.last_error_line()}; the log is {self.log}"
            )
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        supervisor = Path(__file__).with_name("supervisor.py")
        environment = server_environment(os.environ, self.key)
        with self.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-S", str(supervisor), *self._plan.command(self.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        assert self._supervisor.stdout is not None
        self.process_group = int(self._supervisor.stdout.readline() or 0)

    @property
    def alive(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def stop(self) -> None:
        """Kills the process and all of its children, and waits for their end."""
        if self._supervisor is None:
            return
        if self.process_group and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process_group, signal.SIGKILL)
        assert self._supervisor.stdin is not None and self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()
        self._supervisor.stdout.close()
        self._supervisor, self.process_group = None, 0

    def last_error_line(self) -> str:
        """The log's last line with "Error" in it, else its last line, as ` (line)`; empty for an empty log."""
        try:
            lines = self.log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        errors = [line for line in lines if "Error" in line]
        found = (errors or [line for line in lines if line.strip()] or [""])[-1].strip()
        return f" ({found[-300:]})" if found else ""


def server_environment(environment: Mapping[str, str], key: str) -> dict[str, str]:
    """The environment of a server: `environment`, vLLM's settings, and the API key.

    The key is not on the command line, where other users of the machine could read it.
    """
    path = os.pathsep.join(filter(None, (str(WORKER_FOLDER), environment.get("PYTHONPATH"))))
    # The calls that update weights are part of vLLM's development interface.
    fixed = {"VLLM_API_KEY": key, "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": path}
    return {**vllm_settings(), **environment, **fixed}


def vllm_settings() -> dict[str, str]:
    """Environment variables for vLLM on this machine, for a server and in process alike; the user's own go before them."""
    return {**_PRIVATE_ENVIRONMENT, **({} if has_cuda() else _CPU_ENVIRONMENT)}


def check_memory_fraction(fraction: float | None) -> None:
    """Raises UserError unless the share of a GPU's memory is None or in (0, 1]."""
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(
            f"memory_fraction={fraction} is not possible; vLLM's share of the GPU's memory must be in (0, 1]"
        )


def has_cuda() -> bool:
    """Whether there is an NVIDIA driver. Asks no library, so that none initialises the device."""
    return os.path.exists("/proc/driver/nvidia/version")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
