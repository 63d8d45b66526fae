"""What alignment must bear: long rows, hostile rows, threads, processes, Ctrl-C; and what an aligner costs.

    python benches/limits.py            # measures, prints, writes results/limits.json and README.md's table
    python benches/limits.py --table    # the same table, from the results that are there
    python benches/limits.py --quick    # everything small: whether it works, not how much it is

A line is one function here. Times of one thread are processor time, so that what else the machine does counts
little; of threads, processes and signals they are those of the wall clock, and the line on top says how busy
the machine was with other things. Whatever is compared takes turns, and the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tokenizers

import align as bench
import assets
import shapes
from dskd import Aligner, Alignment, Ragged, Vocabulary
from report import Report, machine, said_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PAIR = ("qwen2", "deepseek-v3")
"""The tokenizers of all lines: of the three pairs of align.py the one with the most text in a token."""
ENTRIES = 150_000

Floats = npt.NDArray[np.float64]
Ids = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""One row, teacher and student."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; tokens are the teacher's."""

    rounds: int = 7
    rows: int = 1024
    short: int = 100_000
    hostile: int = 1_000_000
    long: int = 10_000_000
    batch: int = 100_000_000
    differing: int = 2_000_000
    long_tokens: int = 40_000
    builds: int = 5


QUICK = Sizes(
    rounds=1,
    rows=16,
    short=5_000,
    hostile=20_000,
    long=50_000,
    batch=200_000,
    differing=20_000,
    long_tokens=400,
    builds=1,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was measured.

    Attributes:
        what: in words.
        value: what was measured; None where it could not be, and `note` says why.
        unit: of value and target.
        target: what is asked for.
        at_least: whether more is better.
        note: how it was measured.
    """

    what: str
    value: float | None
    unit: str
    target: float
    note: str
    at_least: bool = False


# ---- Rows ------------------------------------------------------------------------------------------------


def row_of(tokens: int, text: str = "source", dtype: type[np.signedinteger[Any]] = np.int64) -> Ids:
    """One row of so many teacher tokens at least: the text, over and over again."""
    pair = bench.tokenizer_pair(*PAIR)
    part = bench.texts()[text][: min(8 * tokens, 400_000)]
    ids = [np.array(side.encode(part), dtype=dtype) for side in (pair.teacher, pair.student)]
    times = -(-tokens // len(ids[0]))
    return np.tile(ids[0], times), np.tile(ids[1], times)


def repeated(tokens: int, teacher: str, student: str) -> Ids:
    """A row of one token a side, given by its text."""
    pair = bench.tokenizer_pair(*PAIR)
    (teacher_id,), (student_id,) = pair.teacher.encode(teacher), pair.student.encode(student)
    return np.full(tokens, teacher_id), np.full(tokens, student_id)


def seconds_of(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def wall_seconds_of(run: Callable[[], object]) -> float:
    """The same by the wall clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def reading(aligner: Aligner, teacher: Any, student: Any, num_threads: int = 1) -> Callable[[], object]:
    """Aligns, and reads the pairs."""

    def run() -> object:
        pairs = aligner.align(teacher, student, num_threads=num_threads).pairs
        return pairs.teacher, pairs.student, pairs.kind

    return run


def nanoseconds_a_token(rows: Sequence[Ids], rounds: int) -> list[Floats]:
    """For each row and round; both sides' tokens count, and short rows are called often."""
    aligner = bench.tokenizer_pair(*PAIR).aligner
    most = max(len(row[0]) for row in rows)
    calls = [max(1, min(most // len(row[0]), 100)) for row in rows]
    for row in rows:
        reading(aligner, *row)()

    def one(row: Ids, times: int) -> float:
        run = reading(aligner, *row)
        seconds = seconds_of(lambda: [run() for _ in range(times)])
        return seconds * 1e9 / times / (len(row[0]) + len(row[1]))

    turns = [[one(row, times) for row, times in zip(rows, calls, strict=True)] for _ in range(rounds)]
    return list(np.array(turns).T)


def median(values: Floats | Sequence[float]) -> float:
    """Rounded to what a table shows."""
    return float(f"{np.median(values):.3g}")


# ---- Threads and long rows -------------------------------------------------------------------------------


def two_threads(sizes: Sizes) -> Iterator[Line]:
    """Two threads against one, by the wall clock; batch after batch, and a batch by itself.

    Between two turns with one thread the other processor sleeps, and where it is a virtual one it takes
    milliseconds to wake, as long as a batch of this size does.
    """
    pair = bench.tokenizer_pair(*PAIR)
    few = bench.batch_of("source", pair, 64, bench.TOKENS_A_ROW)
    teacher, student = (_taken(rows, sizes.rows) for rows in (few.teacher, few.student))
    runs = [reading(pair.aligner, teacher, student, threads) for threads in (1, 2)]
    busy = BusyOthers()
    for run in runs:
        run()
    alone = [wall_seconds_of(runs[0]) / wall_seconds_of(runs[1]) for _ in range(3 * sizes.rounds)]
    many = [lambda run=run: [run() for _ in range(_BATCHES)] for run in runs]
    ratios = [wall_seconds_of(many[0]) / wall_seconds_of(many[1]) for _ in range(sizes.rounds)]
    note = (
        f"wall clock, {_BATCHES} batches a turn, {sizes.rows:,} rows of about 1,024 tokens each; one batch a "
        f"turn: {median(alone)} times; meanwhile others used {busy}"
    )
    yield Line("two threads against one", median(ratios), "times", 1.6, note, at_least=True)


_BATCHES = 8


def _taken(rows: Ragged, count: int) -> Ragged:
    """So many rows: these, over and over again."""
    each = np.split(rows.values, rows.offsets[1:-1])
    taken = [each[index % len(each)] for index in range(count)]
    return Ragged.from_lengths(np.concatenate(taken), [len(row) for row in taken])


class BusyOthers:
    """How many processors others use, from here until it is printed."""

    def __init__(self) -> None:
        """Begins to count."""
        self.start = self._now()

    def __str__(self) -> str:
        """In words."""
        seconds, used = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return (
            f"{max(used, 0) / seconds:.2f} of {os.cpu_count()} processors" if seconds else "what is unknown"
        )

    @staticmethod
    def _now() -> tuple[float, float]:
        """Seconds on the wall clock, and those that all processors worked for others."""
        try:
            columns = [int(each) for each in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
        except FileNotFoundError:
            return 0, 0
        ticks = sum(columns) - columns[3] - columns[4]  # neither idle nor waiting for a disk
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def long_row(sizes: Sizes) -> Iterator[Line]:
    """Time per token of a very long row against a long one."""
    short, long = nanoseconds_a_token([row_of(sizes.short), row_of(sizes.long)], sizes.rounds)
    note = f"source; {median(long):.3g} against {median(short):.3g} ns a token, teacher plus student"
    what = f"time per token at {sizes.long:,} tokens in one row against {sizes.short:,}"
    yield Line(what, median(long / short), "times", 1.5, note)


def hostile_rows(sizes: Sizes) -> Iterator[Line]:
    """Rows of nothing but repetition or difference, per token against ordinary text of the same length."""
    tokens = sizes.hostile
    ordinary, prose, chinese = (row_of(tokens, text) for text in ("source", "prose", "chinese"))
    rows = {
        "one repeated token": repeated(tokens, " the", " the"),
        "one repeated token a side, another": repeated(tokens, " the", " and"),
        "one repeated token against ordinary text": (repeated(tokens, " the", " the")[0], ordinary[1]),
        "one text against another": (ordinary[0], prose[1]),
        "a text against Chinese": (ordinary[0], chinese[1]),
    }
    base, *times = nanoseconds_a_token([ordinary, *rows.values()], sizes.rounds)
    for what, its_times in zip(rows, times, strict=True):
        note = f"{tokens:,} tokens in one row; {median(its_times):.3g} against {median(base):.3g} ns a token"
        yield Line(f"{what}, per token against source", median(its_times / base), "times", 3, note)


def hostile_shapes(sizes: Sizes) -> Iterator[Line]:
    """Rows that differ in ways that make a search look everywhere: time per token, and how it grows."""
    found = []
    for name, vocabulary, make in shapes.shapes():
        once, long = (
            _nanoseconds_of_shape(vocabulary, make, tokens) for tokens in (sizes.short, sizes.hostile)
        )
        found.append((long, long / once, name))
    slowest = max(found)
    grown = max(found, key=lambda shape: shape[1])
    what = f"the slowest of {len(found)} hostile shapes of {sizes.hostile:,} tokens a side"
    yield Line(f"{what}, a token", slowest[0] / 1000, "microseconds", 2, slowest[2])
    yield Line(
        f"{what}, the one that grows most, a token against {sizes.short:,}", grown[1], "times", 1.5, grown[2]
    )


def _nanoseconds_of_shape(vocabulary: str, make: shapes.Make, tokens: int) -> float:
    rows = [np.ascontiguousarray(side, dtype=np.int64) for side in make(tokens, np.random.default_rng(1))]
    aligner = shapes.aligner(vocabulary)
    seconds = min(seconds_of(lambda: aligner.align(rows[0], rows[1], num_threads=1).pairs) for _ in range(2))
    return 1e9 * seconds / (len(rows[0]) + len(rows[1]))


# ---- Memory ----------------------------------------------------------------------------------------------


def memory(sizes: Sizes) -> Iterator[Line]:
    """Peak memory a token beyond input and output, in a process of its own for each."""
    for what in ("pairs", "everything"):
        name = f"peak memory beyond input and output, {what} read"
        if not Path("/proc/self/clear_refs").exists():
            yield Line(name, None, "bytes a token", 40, "the system does not tell it")
            continue
        found = _in_a_process("memory", sizes, what)
        value = float(f"{found['beyond'] / found['tokens']:.3g}")
        sizes_of_all = f"input {found['input'] / 1e6:,.0f} MB, output {found['output'] / 1e6:,.0f} MB"
        note = f"one row of {found['tokens']:,} teacher tokens, by which it is divided; {sizes_of_all}"
        yield Line(name, value, "bytes a token", 40, note)


def measure_memory(aligner: Aligner, row: Ids, tokens: int, what: str) -> None:
    """Runs in a process of its own, and prints what it found.

    `ru_maxrss` would not do: a process inherits that of the one that started it.
    """
    teacher, student = (np.tile(ids, -(-tokens // len(row[0]))) for ids in row)
    aligner.align(row[0][:100], row[1][:100], num_threads=1)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    found = aligner.align(teacher, student, num_threads=1)
    read = bench.everything(found) if what == "everything" else bench.pair_arrays(found)
    peak = _resident_bytes("VmHWM")
    output = sum(array.nbytes for array in read)
    beyond = peak - before - output
    sizes = {"input": teacher.nbytes + student.nbytes, "output": output, "beyond": beyond}
    print(json.dumps({"tokens": len(teacher), **sizes}))


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


# ---- Building --------------------------------------------------------------------------------------------


def building(sizes: Sizes) -> Iterator[Line]:
    """An aligner from tables of bytes and from tokenizers, and its pickle."""
    tables = [_tokens_of(bench.side("qwen2").vocabulary), _tokens_of(Vocabulary.from_file(_rank_file()))]
    sides = " and ".join(f"{len(tokens):,}" for tokens in tables)
    seconds = _median_seconds(lambda: Aligner(*map(Vocabulary.from_bytes, tables)), sizes.builds)
    yield Line("building from tables of bytes", seconds, "s", 0.2, f"Qwen2's and o200k's first {sides}")
    loaded = [tokenizers.Tokenizer.from_file(str(assets.tokenizer(name) / "tokenizer.json")) for name in PAIR]
    sides = " and ".join(f"{each.get_vocab_size():,}" for each in loaded)
    seconds = _median_seconds(lambda: Aligner(*loaded), sizes.builds)
    yield Line("building from tokenizers", seconds, "s", 1.5, f"{' and '.join(PAIR)}, {sides} entries")
    aligner = Aligner(*map(Vocabulary.from_bytes, tables))
    pickled = pickle.dumps(aligner)
    dump = _median_seconds(lambda: pickle.dumps(aligner), sizes.builds)
    load = _median_seconds(lambda: pickle.loads(pickled), sizes.builds)  # noqa: S301 - our own
    note = f"{dump:.3g} and {load:.3g} s, {len(pickled) / 1e6:.1f} MB; the one from tables of bytes"
    yield Line("pickling and loading", float(f"{dump + load:.3g}"), "s", 0.1, note)


def _tokens_of(vocabulary: Vocabulary) -> list[bytes | None]:
    return [vocabulary.token_bytes(token_id) for token_id in range(min(ENTRIES, len(vocabulary)))]


def _rank_file() -> Path:
    return assets.tokenizer("o200k") / "o200k.tiktoken"


def _median_seconds(run: Callable[[], object], times: int) -> float:
    return median([seconds_of(run) for _ in range(times)])


# ---- Processes and signals -------------------------------------------------------------------------------

ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    "nothing set": {},
    "TOKENIZERS_PARALLELISM=true": {"TOKENIZERS_PARALLELISM": "true"},
    "TOKENIZERS_PARALLELISM=false": {"TOKENIZERS_PARALLELISM": "false"},
    "RAYON_NUM_THREADS=1": {"RAYON_NUM_THREADS": "1"},
    "RAYON_NUM_THREADS=4": {"RAYON_NUM_THREADS": "4"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


def children(sizes: Sizes) -> Iterator[Line]:
    """How long a child takes to align in parallel, after its parent did."""
    for method in multiprocessing.get_all_start_methods():
        seconds = [_in_a_process("child", sizes, method, **each)["seconds"] for each in ENVIRONMENTS.values()]
        worst = float(f"{max(seconds):.3g}")
        note = f"wall clock, the slowest under {len(seconds)} settings of the environment"
        yield Line(f"a child by {method} after a parallel call", worst, "s", 5, note)


def measure_child(aligner: Aligner, row: Ids, method: str) -> None:
    """Runs in a process of its own, and prints what it found; a child that hangs is killed after 30 s."""
    _align_in_parallel(aligner, row)
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=_align_in_parallel, args=(aligner, row))
    start = time.perf_counter()
    child.start()
    child.join(30)
    seconds = time.perf_counter() - start
    if child.exitcode is None:
        child.kill()
    elif child.exitcode:
        raise SystemExit(f"the child ended with {child.exitcode}")
    print(json.dumps({"seconds": seconds}))


def _align_in_parallel(aligner: Aligner, row: Ids) -> None:
    rows = [[ids] * 64 for ids in row]
    if not len(aligner.align(*rows, num_threads=2).pairs):
        raise RuntimeError("no pairs were found")


DELAYS = (0.02, 0.05, 0.1, 0.2)
"""Seconds after the start of a call when SIGINT is sent."""


def ctrl_c(sizes: Sizes) -> Iterator[Line]:
    """Seconds from the signal of another process until `KeyboardInterrupt`, the worst of some."""
    for shape, (tokens, _) in SHAPES.items():
        for threads in (1, 2) if shape in THREADED else (1,):
            name = f"Ctrl-C, {tokens(sizes):,} tokens, {shape}, {threads} thread{'s' if threads > 1 else ''}"
            latencies = _latencies(sizes, shape, threads)
            if not latencies:
                yield Line(name, None, "s", 0.2, "every call ended before its signal")
                continue
            note = f"wall clock, the slowest of {len(latencies)}; a batch of so many teacher tokens"
            yield Line(name, float(f"{max(latencies):.3g}"), "s", 0.2, note)


def _latencies(sizes: Sizes, shape: str, threads: int) -> list[float]:
    """Of those calls that had not ended when the signal was sent."""
    found = []
    with _process("interrupts", sizes, shape, str(threads)) as child:
        for delay in DELAYS:
            _tell(child, "go")
            _expect(child, "started")
            time.sleep(delay)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            answer = json.loads(_line(child))
            if not answer["ended"]:
                found.append(answer["at"] - sent)
    return found


def measure_interrupts(aligner: Aligner, row: Ids, sizes: Sizes, shape: str, threads: int) -> None:
    """Runs in a process of its own: a call for each line of its input, and one signal for each call.

    The clock of both processes is that of the machine.
    """
    tokens, make = SHAPES[shape]
    interrupted, teacher, student = make(aligner, row, tokens(sizes))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background ignores it
    for _ in sys.stdin:
        ended = False
        try:
            print("started", flush=True)
            _everything_of(interrupted.align(teacher, student, num_threads=threads))
            ended = True
            time.sleep(60)
        except KeyboardInterrupt:
            at = time.monotonic()
        _align_in_parallel(aligner, row)  # it works afterwards
        print(json.dumps({"ended": ended, "at": at}), flush=True)


Call = tuple[Aligner, Any, Any]
"""An aligner, and the rows of both sides."""
LONG_TOKEN = 10_000
"""Bytes of a token of `_of_long_tokens`."""


def _everything_of(alignment: Alignment) -> object:
    """All arrays: they are made while a signal may come, too."""
    return bench.everything(alignment)


def _repeated_row(aligner: Aligner, row: Ids, tokens: int, tokens_a_row: int | None = None) -> Call:
    """The row over and over again, whole or cut into rows of about so many teacher tokens."""
    count = 1 if tokens_a_row is None else max(1, tokens // tokens_a_row)
    teacher, student = (np.tile(ids.astype(np.int32), tokens // len(row[0]) + 1) for ids in row)
    return aligner, _cut(teacher, count), _cut(student, count)


def _cut(values: npt.NDArray[np.int32], count: int) -> Ragged:
    return Ragged.from_lengths(values, [len(values) // count] * count)


def _lists(aligner: Aligner, row: Ids, tokens: int) -> Call:
    """Lists of the row's ids, the same objects over and over again."""
    times = tokens // len(row[0]) + 1
    return aligner, [row[0].tolist()] * times, [row[1].tolist()] * times


def _that_differs(_aligner: Aligner, _row: Ids, tokens: int) -> Call:
    """One row of letters drawn at random on each side."""
    letters = Vocabulary.from_bytes([bytes([97 + letter]) for letter in range(4)])
    draw = np.random.default_rng(0)
    return Aligner(letters, letters), draw.integers(0, 4, tokens), draw.integers(0, 4, tokens)


def _of_long_tokens(_aligner: Aligner, _row: Ids, tokens: int) -> Call:
    """One row of tokens of many bytes, of which the student has ten others."""
    vocabulary = Vocabulary.from_bytes([bytes([97 + token]) * LONG_TOKEN for token in range(2)])
    teacher = np.zeros(tokens, dtype=np.int64)
    student = teacher.copy()
    student[:: max(1, tokens // 10)] = 1
    return Aligner(vocabulary, vocabulary), teacher, student


SHAPES: Mapping[str, tuple[Callable[[Sizes], int], Callable[[Aligner, Ids, int], Call]]] = {
    "one row": (lambda sizes: sizes.batch, _repeated_row),
    "rows of 1,024": (lambda sizes: sizes.batch, functools.partial(_repeated_row, tokens_a_row=1_024)),
    "rows of 16": (lambda sizes: sizes.long, functools.partial(_repeated_row, tokens_a_row=16)),
    "lists of 1,024": (lambda sizes: sizes.long, _lists),
    "one row that differs": (lambda sizes: sizes.differing, _that_differs),
    "one row of tokens of 10 kB": (lambda sizes: sizes.long_tokens, _of_long_tokens),
}
"""For each shape of a batch how many teacher tokens it has, and what makes it."""
THREADED = ("one row", "rows of 1,024")
"""Those that are aligned with two threads as well."""


# ---- Processes of their own ------------------------------------------------------------------------------


def _in_a_process(task: str, sizes: Sizes, *options: str, **environment: str) -> dict[str, Any]:
    """What a task of this file prints in a process of its own."""
    with _process(task, sizes, *options, **environment) as child:
        found: dict[str, Any] = json.loads(_line(child))
        return found


@contextlib.contextmanager
def _process(task: str, sizes: Sizes, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A task of this file in a process of its own, given an aligner and a row that are there already.

    It makes none of them itself: tokenizers would start threads, and take memory.
    """
    settings = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in settings}
    tokens = 1_024 if task in {"child", "interrupts"} else sizes.short
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.pickle"
        given.write_bytes(pickle.dumps((bench.tokenizer_pair(*PAIR).aligner, row_of(tokens), asdict(sizes))))
        command = [sys.executable, str(Path(__file__).resolve()), "--task", task, str(given), *options]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, **environment},
        )
        try:
            yield child
            child.communicate(timeout=60)
        finally:
            child.kill()
            child.wait()


def _tell(child: subprocess.Popen[str], line: str) -> None:
    if child.stdin is None:
        raise RuntimeError("the process has no input")
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def _line(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise RuntimeError(f"{child.args!r} ended without an answer")
    return line


def _expect(child: subprocess.Popen[str], line: str) -> None:
    if (found := _line(child).strip()) != line:
        raise RuntimeError(f"{found!r} instead of {line!r}")


def run_task(task: str, file: str, *options: str) -> None:
    """What a process of its own does."""
    aligner, row, given = pickle.loads(Path(file).read_bytes())  # noqa: S301 - our own
    sizes = Sizes(**given)
    if task == "memory":
        measure_memory(aligner, row, sizes.long, *options)
    elif task == "child":
        measure_child(aligner, row, *options)
    else:
        measure_interrupts(aligner, row, sizes, options[0], int(options[1]))


# ---- All of it -------------------------------------------------------------------------------------------

MEASUREMENTS: Mapping[str, Callable[[Sizes], Iterator[Line]]] = {
    "threads": two_threads,
    "long": long_row,
    "hostile": hostile_rows,
    "shapes": hostile_shapes,
    "memory": memory,
    "building": building,
    "children": children,
    "ctrl-c": ctrl_c,
}


def measure(sizes: Sizes, besides: str) -> dict[str, Any]:
    """All lines, ready for JSON."""
    load = os.getloadavg()[0]
    lines = []
    for name, lines_of in MEASUREMENTS.items():
        print(name, file=sys.stderr)
        lines += [asdict(line) for line in lines_of(sizes)]
    loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
    return {
        "lines": lines,
        "machine": machine(*bench.PACKAGES) | loads,
        "besides": besides,
        "sizes": asdict(sizes),
    }


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    head = ["what", "how", "asked", "measured", "held"]
    where, rounds = said_of(results["machine"]), results["sizes"]["rounds"]
    return "\n\n".join(
        [
            "What is asked of alignment beside its speed:",
            table(head, map(_cells, results["lines"])),
            f"{where}; medians of {rounds} rounds; beside it ran: {results['besides']}.",
        ]
    )


def _cells(line: Mapping[str, Any]) -> list[str]:
    value, target, unit = line["value"], line["target"], line["unit"]
    bound = "at least" if line["at_least"] else "at most"
    asked = f"{bound} {target:g} {unit}"
    if value is None:
        return [line["what"], line["note"], asked, "", ""]
    held = (value >= target) if line["at_least"] else (value <= target)
    return [line["what"], line["note"], asked, f"{value:g} {unit}", "yes" if held else "no"]


REPORT = Report("limits", "What alignment must bear, and what an aligner costs.", tables)


def main() -> None:
    """Measures, or reads what was measured, and prints the table."""
    parser = REPORT.parser(quick="everything small: whether it works", besides=True)
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_task(*options.task)
        return
    REPORT.run(options, lambda: measure(QUICK if options.quick else Sizes(), options.besides))


if __name__ == "__main__":
    main()
