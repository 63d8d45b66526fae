"""What tests/test_processes.py runs in a process of its own.

python tests/children.py start fork       # aligns in parallel, then so does a child started this way
python tests/children.py memory           # bytes of two vocabularies, and of a forked child that uses them
python tests/children.py interrupt one 2  # processor time of a long call on one row or many, and after SIGINT
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np

from dskd import Aligner, Ragged, Vocabulary
from hello import ALIGNER, HELLO, HELLO_PAIRS, large_batch

HANGS = 300
"""Seconds after which what has not ended is taken to hang, on however busy a machine."""


def align_large(num_threads: int | None) -> None:
    """Aligns rows that are dealt out to threads, and looks at what is found."""
    teacher, student = large_batch()
    found = ALIGNER.align(teacher, student, num_threads=num_threads)
    assert len(found) == len(teacher)
    assert len(found.pairs) == len(HELLO_PAIRS) * sum(map(len, teacher)) // len(HELLO[0])


def start(method: str) -> None:
    """Leaves with 0 if a child ends well after its parent aligned in parallel, which goes on then."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a process with threads is forked
    align_large(2)
    for num_threads in (2, None):
        child = multiprocessing.get_context(method).Process(target=align_large, args=(num_threads,))  # type: ignore[attr-defined] # of some context
        child.start()
        child.join(HANGS)
        if child.exitcode is None:
            child.kill()
            sys.exit(f"the child with num_threads={num_threads} did not end")
        assert child.exitcode == 0
    align_large(2)


def memory() -> None:
    """Prints the bytes of an aligner's content, and those that a forked child takes in private to use it."""
    aligner = Aligner(_large_vocabulary(0), _large_vocabulary(1))
    content = len(pickle.dumps(aligner))
    everywhere = np.arange(0, len(aligner.teacher), 50)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        start = _private_bytes()
        aligner.align(everywhere, everywhere, num_threads=1)
        os.write(writer, str(_private_bytes() - start).encode())
        os._exit(0)
    os.waitpid(child, 0)
    print(json.dumps({"content": content, "child": int(os.read(reader, 100))}))


def _large_vocabulary(seed: int) -> Vocabulary:
    draw = random.Random(seed)  # noqa: S311 - any bytes will do
    return Vocabulary.from_bytes([draw.randbytes(draw.randint(1, 40)) for _ in range(200_000)])


def _private_bytes() -> int:
    """Memory of this process that no other has."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def interrupt(rows: str, num_threads: int) -> None:
    """Prints the processor time of a long call, and of the same call from SIGINT on, after a tenth of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background ignores it
    for repeats in itertools.accumulate(itertools.repeat(2), int.__mul__, initial=250_000):
        teacher, student = _repeated(HELLO[0], repeats, rows), _repeated(HELLO[1], repeats, rows)
        began, busy = time.monotonic(), time.process_time()
        whole_pairs = len(ALIGNER.align(teacher, student, num_threads=num_threads).pairs)
        seconds, whole = time.monotonic() - began, time.process_time() - busy
        if whole > 1 or repeats >= 8_000_000:
            break
    assert whole_pairs == repeats * len(HELLO_PAIRS)
    cut = [_interrupted_after(seconds / 10, teacher, student, num_threads) for _ in range(5)]
    align_large(2)
    align_large(1)
    print(json.dumps({"whole": whole, "cut": cut}))


def _repeated(ids: list[int], repeats: int, rows: str) -> Ragged:
    values = np.tile(np.array(ids, dtype=np.int32), repeats)
    count = 1 if rows == "one" else repeats // 250
    return Ragged.from_lengths(values, [len(values) // count] * count)


def _interrupted_after(seconds: float, teacher: Ragged, student: Ragged, num_threads: int) -> float | None:
    """Processor time from SIGINT to `KeyboardInterrupt`; None if the call ended before the signal came."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, send)
    ended = False
    timer.start()
    try:
        ALIGNER.align(teacher, student, num_threads=num_threads)
        ended = not sent
        time.sleep(HANGS)
    except KeyboardInterrupt:
        took = time.process_time() - sent[0]
        timer.join()
        return None if ended else took
    raise AssertionError("SIGINT was lost")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["start", method]:
            start(method)
        case ["memory"]:
            memory()
        case ["interrupt", rows, threads]:
            interrupt(rows, int(threads))
