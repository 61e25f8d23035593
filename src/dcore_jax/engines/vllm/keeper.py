"""Runs one command and ends it, with all of its children, when whoever started the keeper is gone.

    python keeper.py COMMAND...

The starter holds the other end of standard input. It closes when the starter ends, however it ends (SIGKILL too). Standard
library only, and run as a file: a keeper should cost nothing. Prints the command's process id, which is its process group, as
its first line.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

GRACE = 10.0  # seconds between asking and killing


def _end(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def main(command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the starter decides; its end is what counts
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=_default_signals,
    )
    print(process.pid, flush=True)
    while process.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], 0.5)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            _end(process, signal.SIGCONT)  # a stopped process could not act on the wish to end
            _end(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            break
    _end(process, signal.SIGKILL)  # children that outlived it
    return process.wait()


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
