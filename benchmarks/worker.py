"""One contestant in a process of its own, that does its work when it is told to.

    python benchmarks/worker.py with_torch train problem.npz
    python benchmarks/worker.py with_cax:remat train problem.npz     a variant, that it chooses

Reads commands, a line each, and answers each with a line of JSON:

    check PATH  writes what must be equal in all contestants
    run         does the work once: the seconds
    settle      the most memory so far above that before the first run, in GB, compiling included;
                from here on memory is counted anew
    memory      the most memory since then above what was in use, in GB
    race        does the work, train steps, until the mean of 50 losses is at most 1e-3: how many
"""

import ctypes
import importlib
import json
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(field: str) -> float:
    """Returns a field of this process's status, in GB."""
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) / 1e6


def settle() -> float:
    """Gives back what is free, starts the count of the most memory anew, returns what is in use."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    return memory("VmRSS")


def main() -> None:
    contestant, task, path = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    name, _, variant = contestant.partition(":")
    module = importlib.import_module(name)
    if variant:
        module.choose(variant)
    with np.load(path) as file:
        problem = dict(file)
    work, idle = None, 0.0
    for line in sys.stdin:
        command, *arguments = line.split()
        if command != "check" and work is None:
            work, idle = getattr(module, task)(problem), settle()
        start = time.perf_counter()
        if command == "check":
            np.savez(arguments[0], **module.check(problem))
            answer()
        elif command == "run":
            work()
            answer(seconds=time.perf_counter() - start)
        elif command == "settle":
            most = memory("VmHWM") - idle
            idle = settle()
            answer(memory=most)
        elif command == "memory":
            answer(memory=memory("VmHWM") - idle)
        elif command == "race":
            losses, steps = deque(maxlen=50), 0
            while len(losses) < 50 or sum(losses) > 50 * 1e-3:
                losses.append(work())
                steps += 1
            answer(steps=steps)


if __name__ == "__main__":
    main()
