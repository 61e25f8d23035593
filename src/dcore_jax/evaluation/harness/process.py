"""A benchmark's process and the pipe to it; the protocol stands in worker/pipe.py."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError

_WORKERS = Path(__file__).parent / "worker"
_START_SECONDS = 300.0


class HarnessError(RuntimeError):
    """The benchmark's process failed at a request, or has ended."""


class HarnessProcess:
    """A worker under way. `ask` may be called from many threads."""

    def __init__(
        self,
        worker: str,
        *,
        paths: Sequence[str | Path] = (),
        isolated: bool = False,
        arguments: Sequence[str] = (),
        log: str | Path | None = None,
    ):
        """Starts it and waits until it answers.

        Args:
          worker: a file of worker/, without its extension.
          paths: folders on its path: the benchmark's packages, a checkout.
          isolated: it does not see the packages of this environment.
          log: file for what it prints; None: the last lines are kept for the message of an error.

        Raises:
          UserError: it does not start; with its last line.
        """
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # without it litellm fetches prices when it is imported
        }
        environment.pop("PYTHONPYCACHEPREFIX", None)
        flags = ["-S"] if isolated else []
        self._lines: deque[str] = deque(maxlen=40)
        self._log = Path(log).open("a", encoding="utf-8") if log else None  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *flags, str(_WORKERS / f"{worker}.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        ready: Future[Any] = Future()
        self._waiting: dict[int, Future[Any]] = {0: ready}
        threading.Thread(target=self._read_log, daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            ready.result(_START_SECONDS)
        except (HarnessError, TimeoutError) as error:
            self.close()
            raise UserError(f"{worker} does not start: {str(error) or 'no answer in five minutes'}") from None

    def ask(self, op: str, **fields: Any) -> Any:
        """The answer to a request.

        Raises:
          HarnessError: the worker raised, or has ended.
        """
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            if self._process.poll() is not None:
                raise HarnessError(self._ended())
            self._waiting[number] = future
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps({"request": number, "op": op, **fields}) + "\n")
                self._process.stdin.flush()
            except OSError:
                del self._waiting[number]
                raise HarnessError(self._ended()) from None
        return future.result()

    def close(self) -> None:
        """Ends the process: its input is closed, and it is killed where that does not end it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> "HarnessProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._lock:
                future = self._waiting.pop(message["request"])
            if "error" in message:
                future.set_exception(HarnessError(message["error"]))
            else:
                future.set_result(message["answer"])
        self._process.wait()
        with self._lock:
            waiting, self._waiting = dict(self._waiting), {}
        for future in waiting.values():
            future.set_exception(HarnessError(self._ended()))

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line.rstrip())
            if self._log is not None and not self._log.closed:
                self._log.write(line)
                self._log.flush()

    def _ended(self) -> str:
        last = next((line for line in reversed(self._lines) if line.strip()), "")
        return f"its process ended with status {self._process.poll()}: {last[:300]}"
