"""Process supervisor: runs one command, and ends it with all of its children when the parent process is gone.

    python supervisor.py COMMAND...

The parent holds the other end of standard input, which the kernel closes when the parent ends, SIGKILL included. Standard library
only, and run as a file, so that a supervisor starts at once and needs little memory. Its first line of output is the command's
process id, which is also its process group.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

TERMINATE_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL


def main(command: list[str]) -> int:
    """Runs the command until it ends or the parent is gone; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Ctrl-C in a terminal reaches every process of the run; only the parent's end decides here.
        signal.signal(number, signal.SIG_IGN)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,  # a process group of its own, so that its children can be signalled with it
        preexec_fn=_default_signals,
    )
    print(process.pid, flush=True)
    while process.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], 0.5)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            _signal_group(process, signal.SIGCONT)  # a stopped process could not handle SIGTERM
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATE_TIMEOUT)
            break
    _signal_group(process, signal.SIGKILL)  # children that outlived the command
    return process.wait()


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _default_signals() -> None:
    # Ignored signals are inherited: without this the command could not be ended by SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
