"""Speaks to the process that knows `bfcl-eval` (worker/adapter.py): a request a line, an answer a line."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dcore_jax.errors import UserError

_WORKER = Path(__file__).parent / "worker" / "adapter.py"


class WorkerEnded(UserError):
    """The process of bfcl-eval is gone."""


@runtime_checkable
class Answers(Protocol):
    """What generation needs of a `Client`: an answer to each request of worker/adapter.py."""

    def ask(self, method: str, /, **arguments: Any) -> Any: ...


class Client:
    """One process of the benchmark; requests of several threads take turns.

    Args:
      folder: what `install` made.
      version: `v3` or `v4`.
      seconds: time limit of one item, for its tools and its checker.
    """

    def __init__(self, folder: str | Path, version: str, *, seconds: float = 30.0):
        self._lock = threading.Lock()
        self._scratch = tempfile.TemporaryDirectory(prefix="dcore-bfcl-")
        self._log = open(Path(self._scratch.name) / "stderr", "w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._command = [sys.executable, str(_WORKER), str(Path(folder).resolve()), version, str(seconds)]
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        environment = {**os.environ, "BFCL_PROJECT_ROOT": self._scratch.name, "PYTHONUTF8": "1"}
        environment.pop("PYTHONPATH", None)
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            encoding="utf-8",
        )

    def restart(self) -> None:
        """A new process in the place of one that has ended; its sessions are lost."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def ask(self, method: str, /, **arguments: Any) -> Any:
        """The answer of the worker's method.

        Raises:
          WorkerEnded: the process has died.
          UserError: the request failed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            try:
                # Escaped to ASCII: a lone surrogate in an answer passes through.
                self._process.stdin.write(json.dumps({"call": method, "arguments": arguments}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError):
                line = ""
        if not line:
            raise WorkerEnded(
                f"bfcl-eval's process has ended: {self._last_words()}; if it cannot start, run "
                "`python scripts/install_benchmark.py --force`"
            )
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(f"bfcl-eval: {method}: {reply['error']}")
        return reply["answer"]

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        self._scratch.cleanup()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines: Sequence[str] = self._log.read().strip().splitlines()
        return lines[-1][:200] if lines else f"status {self._process.returncode}"
