"""What tests/test_processes.py runs in a process of its own.

python tests/children.py start fork       # aligns in parallel, then so does a child started this way
python tests/children.py memory           # bytes of two vocabularies, and of a forked child that uses them
python tests/children.py interrupt rows 2 # whether SIGINT ends a long call on rows of this shape
python tests/children.py starve           # what comes of calls whose result may not fit their memory
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
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dskd import Aligner, Ragged, Vocabulary
from hello import ALIGNER, HELLO, HELLO_PAIRS, large_batch
from sides import in_lists

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dskd.ragged import RowsLike

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


BYTES = Vocabulary.from_bytes([bytes([byte]) for byte in range(256)])
LONG_TOKENS = 10_000
LONG = Vocabulary.from_bytes([bytes([97 + token]) * LONG_TOKENS for token in range(4)])
"""Tokens of many bytes: work is not to be counted in tokens alone."""


def interrupt(shape: str, num_threads: int) -> None:
    """Prints whether SIGINT ended a call before its end; calls become longer until one is, or long enough."""
    seconds, interrupted = 0.0, False
    for doublings in itertools.count():
        given = SHAPES[shape](1 << doublings)
        began = time.monotonic()
        interrupted = _is_interrupted(*given, num_threads)
        seconds = time.monotonic() - began
        if interrupted or seconds > LONG_ENOUGH:
            break
    align_large(2)
    align_large(1)
    print(json.dumps({"interrupted": interrupted, "seconds": seconds}))


LONG_ENOUGH = 3
"""Seconds; in a tenth of them a signal is to be seen twice."""


def _is_interrupted(aligner: Aligner, teacher: Ragged, student: Ragged, num_threads: int) -> bool:
    """Whether the second of many signals is handled before the call ends.

    The first may be handled at its very end, even by a call that looks for none.
    """
    seen: list[int] = []
    ended = threading.Event()

    def handle(number: int, _: object) -> None:
        seen.append(number)
        if len(seen) == 2 and not ended.is_set():
            raise KeyboardInterrupt

    def send() -> None:
        while not ended.wait(0.01):
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        aligner.align(teacher, student, num_threads=num_threads).pairs  # noqa: B018 - it is made now
        ended.set()
    except KeyboardInterrupt:
        return True
    finally:
        ended.set()
        sender.join()
    return False


Rows: TypeAlias = tuple[Aligner, Ragged, Ragged]


def _equal_rows(times: int, count: int) -> Rows:
    """Rows that read the same on both sides, cut into so many."""
    teacher, student = (np.tile(np.array(ids, dtype=np.int32), 250_000 * times) for ids in HELLO)
    return ALIGNER, _cut(teacher, count), _cut(student, count)


def _cut(values: npt.NDArray[np.int32], count: int) -> Ragged:
    return Ragged.from_lengths(values, [len(values) // count] * count)


def _differing_row(times: int) -> Rows:
    """One row of two texts that have nothing in common but letters."""
    draw = np.random.default_rng(0)
    teacher, student = (draw.integers(97, 101, 60_000 * times).astype(np.int32) for _ in range(2))
    return Aligner(BYTES, BYTES), _cut(teacher, 1), _cut(student, 1)


def _long_tokens(times: int) -> Rows:
    """One row of tokens that have many bytes, of which one differs now and then."""
    teacher = np.zeros(1_000 * times, dtype=np.int32)
    student = teacher.copy()
    student[:: len(student) // 10] = 1
    return Aligner(LONG, LONG), _cut(teacher, 1), _cut(student, 1)


SHAPES: dict[str, Callable[[int], Rows]] = {
    "one row": lambda times: _equal_rows(times, 1),
    "rows": lambda times: _equal_rows(times, 1_000 * times),
    "short rows": lambda times: _equal_rows(times, 50_000 * times),
    "a row that differs": _differing_row,
    "long tokens": _long_tokens,
}


def starve() -> None:
    """Prints for each shape of rows what came of calls with ever more memory: the error, or nothing."""
    import resource  # noqa: PLC0415 - not every system has it

    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    align_large(2)  # the threads are there
    outcomes: dict[str, list[str]] = {}
    for shape, make in HUNGRY.items():
        given = make()
        outcomes[shape] = []
        for doublings in range(20, 30):
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + (1 << doublings), unlimited[1]))
            try:
                outcome = _everything_of(*given)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
            outcomes[shape].append(outcome)
            assert in_lists(ALIGNER.align(*HELLO)).pairs == HELLO_PAIRS
    print(json.dumps(outcomes))


def _everything_of(aligner: Aligner, teacher: RowsLike, student: RowsLike, options: dict[str, Any]) -> str:
    try:
        found = aligner.align(teacher, student, **options)
        assert len(found.pairs) + len(found.chunks) + len(found.differences) + len(found.counts.exact)
    except MemoryError as error:
        return str(error)
    return ""


def _address_space() -> int:
    """Bytes of this process, whether they are in memory or not."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


MANY = 2_000_000
Hungry: TypeAlias = "tuple[Aligner, RowsLike, RowsLike, dict[str, Any]]"


def _hungry(teacher: RowsLike, student: RowsLike, **options: object) -> Hungry:
    return Aligner(BYTES, BYTES), teacher, student, {"num_threads": 1, **options}


def _pairs_of_tokens(first: int) -> Ragged:
    values = first + np.arange(MANY, dtype=np.int32) % 2
    return Ragged(values, np.arange(0, MANY + 1, 2))


ZEROS = np.zeros(MANY, dtype=np.int32)
EVERY_OTHER = np.arange(MANY) % 2 == 0
HUNGRY: dict[str, Callable[[], Hungry]] = {
    "one row": lambda: _hungry(ZEROS, ZEROS),
    "two types": lambda: _hungry(ZEROS, ZEROS.astype(np.uint32)),
    "many segments": lambda: _hungry(ZEROS, ZEROS, teacher_mask=EVERY_OTHER, student_mask=EVERY_OTHER),
    "lists": lambda: _hungry([[1] * 100] * (MANY // 100), [[1] * 100] * (MANY // 100)),
    "rows in two threads": lambda: _hungry(_pairs_of_tokens(0), _pairs_of_tokens(0), num_threads=2),
    "rows that differ": lambda: _hungry(_pairs_of_tokens(0), _pairs_of_tokens(2)),
}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["start", method]:
            start(method)
        case ["memory"]:
            memory()
        case ["interrupt", shape, threads]:
            interrupt(shape, int(threads))
        case ["starve"]:
            starve()
