"""A contestant of a benchmark: a process of its own that trains a few steps when told to and reports what they took.

Only the standard library is imported here, because the peers' processes run in environments of their own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

MARK = "@@"  # starts the lines that are for the other side; whatever else a library prints passes by


def serve(setup: Callable[[dict[str, Any]], Callable[[int], tuple[float, int]]]) -> None:
    """Answers each line `n` on stdin with n steps, one JSON line on stdout; ends with stdin.

    `setup(spec)` reads the spec (a JSON file, the only argument) and returns `step(i) -> (loss, peak bytes or 0)`, which runs
    one optimizer step on batch i and returns when the device is done. Where it has no count of the device's memory, 0 stands for
    the largest resident size of the process.
    """
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    # A contestant that needs too much fails alone, and takes nobody else on the machine with it.
    resource.setrlimit(resource.RLIMIT_DATA, (spec["memory_bytes"], spec["memory_bytes"]))
    step = setup(spec)
    done = 0
    for line in sys.stdin:
        seconds, core_seconds, losses, peak = [], [], [], 0
        for _ in range(int(line)):
            wall, cpu = time.perf_counter(), time.process_time()
            loss, peak = step(done)
            seconds.append(time.perf_counter() - wall)
            core_seconds.append(time.process_time() - cpu)
            losses.append(loss)
            done += 1
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {
            "seconds": seconds,
            "core_seconds": core_seconds,
            "losses": losses,
            "peak_bytes": peak or resident,
        }
        print(MARK + json.dumps(answer), flush=True)
