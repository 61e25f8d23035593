"""The protocol between dcore_jax and a benchmark's own process: JSON lines over its standard input and output.

A request is `{"request": n, "op": name, ...}`; its answer `{"request": n, "answer": ...}`, or with "error". Requests of several
conversations are under way at the same time. A benchmark is a class with these methods:

    tasks(**options)                      [{"id", "category", "parts"}]: parts are conversations of one task, usually one
    open(session, task, part, trial, **conversation) {"messages", "tools"}: the opening of a conversation
    call(session, name, arguments, text)  {"content", "done"}: what a call returns; text: the words before the turn's first call
    reply(session, text, error)           {"messages"}: what follows a turn without calls; None ends it
    close(session)                        the trajectory, as JSON
    score(task, trajectories)             {"reward", "reason", "numbers"}: of a task's parts, by part; numbers are summed
    reference(task, part)                 [{"calls", "text"}]: the turns of a perfect model

This file and its neighbours run where dcore_jax is not installed: they import the standard library and the benchmark.
"""

import gc
import json
import os
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor


def serve(benchmark, threads=64):
    """Answers requests until the input ends. What the benchmark prints goes to the log, not into the protocol."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message):
        text = json.dumps(message, ensure_ascii=True, default=str)
        with lock:
            answers.write(text + "\n")
            answers.flush()

    def answer(message):
        number, op = message.pop("request"), message.pop("op")
        try:
            send({"request": number, "answer": getattr(benchmark, op)(**message)})
        except BaseException as error:
            traceback.print_exc()
            send({"request": number, "error": f"{type(error).__name__}: {error}"[:2000]})

    # Databases of millions of objects come and go: the default threshold looks at all of them every few milliseconds.
    gc.set_threshold(200_000, 20, 100)
    send({"request": 0, "answer": "ready"})
    with ThreadPoolExecutor(threads) as pool:
        for line in sys.stdin:
            pool.submit(answer, json.loads(line))
