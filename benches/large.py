"""A file of ten million tokens through `dskd align`: speed end to end, peak memory, and ten kills.

    python benches/large.py            # prints Markdown, writes results/large.json
    python benches/large.py --quick    # a small file, two kills: whether it works, not how fast

The file holds real text (see corpus.py) in rows of about 4,000 characters, over and over until both sides
together have so many tokens: once as ids of both sides in Parquet, once as text in JSON lines. Each goes
through the command `dskd align --shard-rows`, a process of its own: the wall clock counts its start, its
imports and the tokenizers it loads. Peak memory is the highest resident memory of that process (it has no
children), as the kernel counts it. The same command over the first tenth of the rows says how memory grows
with the file.

Then the same, killed (SIGKILL) at random moments and started again; its folder must hold the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import corpus
from dskd.arrow import list_array
from dskd.cli.pair import TokenizerPair
from report import Report, machine, said_of, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

import assets  # corpus.py has put its folder into the path

TOKENS = 10_000_000
TEACHER, STUDENT = "deepseek-v3", "qwen2"
CHARACTERS = 4_000
ROWS_TOKENIZED = 256
SHARDS = 25
KILLS = 10
SEED = 7


@dataclass(frozen=True, slots=True)
class Ended:
    """What a process took: seconds by the wall clock, and its peak of resident memory in bytes."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A kind of input and what was measured on it.

    Attributes:
        kind: "ids in Parquet" or "text in JSON lines".
        rows: of the file.
        tokens: teacher plus student tokens.
        input_bytes: of the file.
        output_bytes: of all shards.
        seconds: of the whole command.
        tokens_per_second: of both sides, by those seconds.
        tokens_per_second_aligning: by the seconds in `Aligner.align` alone.
        peak_bytes: resident, of the whole file.
        peak_bytes_of_a_tenth: the same for the first tenth of its rows.
        kills: how often it was killed before it came to its end.
        shards_when_killed: how many shards were done at each kill.
        same_bytes: whether every file is the same as that of the run that was not killed.
    """

    kind: str
    rows: int
    tokens: int
    input_bytes: int
    output_bytes: int
    seconds: float
    tokens_per_second: float
    tokens_per_second_aligning: float
    peak_bytes: int
    peak_bytes_of_a_tenth: int
    kills: int
    shards_when_killed: list[int]
    same_bytes: bool


def tokenizer(name: str) -> Path:
    """Its file: of a folder transformers makes a tokenizer, and imports PyTorch for it where there is one."""
    return assets.tokenizer(name) / "tokenizer.json"


# ---- Input -----------------------------------------------------------------------------------------------


def texts() -> Iterator[str]:
    """Pieces of the real texts in turn, without end."""
    pieces = [
        [text[start : start + CHARACTERS] for start in range(0, len(text), CHARACTERS)]
        for text in corpus.long_texts().values()
    ]
    return itertools.cycle(itertools.chain.from_iterable(itertools.zip_longest(*pieces, fillvalue="")))


def write_inputs(folder: Path, pair: TokenizerPair, tokens: int) -> tuple[Path, Path, int, int]:
    """The same rows as ids in Parquet and as text in JSON lines; how many rows and tokens they have."""
    ids, lines = folder / "ids.parquet", folder / "text.jsonl"
    rows = written = 0
    schema = pa.schema({f"{side}_ids": pa.list_(pa.int32()) for side in ("teacher", "student")})
    source = (text for text in texts() if text)
    with pq.ParquetWriter(ids, schema) as parquet, lines.open("w", encoding="utf-8") as text_file:
        while written < tokens:
            batch = list(itertools.islice(source, ROWS_TOKENIZED))
            aligned = pair.align(batch)
            sides = (aligned.teacher_ids, aligned.student_ids)
            columns = [list_array(side.values, side.offsets) for side in sides]
            parquet.write_batch(pa.record_batch(columns, schema=schema))
            text_file.writelines(json.dumps({"text": text}) + "\n" for text in batch)
            rows += len(batch)
            written += sum(len(side.values) for side in sides)
    return ids, lines, rows, written


# ---- Runs ------------------------------------------------------------------------------------------------


def command(source: Path, output: Path, shard_rows: int, *more: str) -> list[str]:
    """The command line; the summary is written beside the output."""
    names = ["--teacher", str(tokenizer(TEACHER)), "--student", str(tokenizer(STUDENT))]
    where = ["--output", str(output), "--summary", f"{output}.json", "--shard-rows", str(shard_rows)]
    return [sys.executable, "-m", "dskd", "align", str(source), *names, *where, *more]


def run(line: Sequence[str]) -> Ended:
    """Runs it to its end; stops everything if it fails."""
    start = time.perf_counter()
    peak = 0
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, peak_of(process.pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"dskd align ended with {process.returncode}")
    return Ended(time.perf_counter() - start, peak)


def peak_of(process: int) -> int:
    """The peak of its resident memory so far, in bytes; 0 if it has ended.

    Not `ru_maxrss`, in which a process begins with what its parent had.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return max((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), default=0)


def killed(line: Sequence[str], folder: Path, seconds: float) -> bool:
    """Whether it was killed, so many seconds after it began to write, before it came to its end."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(folder.glob(f".part-*.{process.pid}.part")):
            time.sleep(0.002)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"dskd align ended with {process.returncode}")
    return process.returncode != 0


def killed_again_and_again(line: Sequence[str], folder: Path, seconds: float, kills: int) -> list[int]:
    """Runs one job, killed so often at random moments, to its end: the shards there were at each kill.

    Args:
        line: the command.
        folder: where its shards are.
        seconds: how long it writes when nobody kills it.
        kills: how often it is killed. A job that came to its end before that is begun anew.
    """
    rng = random.Random(SEED)  # noqa: S311 - moments, no secrets
    shards: list[int] = []
    while len(shards) < kills:
        if killed(line, folder, rng.uniform(0, 2 * seconds / (kills + 2))):
            shards.append(len(list(folder.glob("part-*"))))
        else:
            shutil.rmtree(folder)
            shards.clear()
    run(line)
    return shards


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file: all shards, and nothing else."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in visible(folder)}


def visible(folder: Path) -> list[Path]:
    """All files but the manifest, which has times in it."""
    return sorted(path for path in folder.iterdir() if path.name != ".manifest.jsonl")


def measured(kind: str, source: Path, rows: int, kills: int) -> Measured:
    """Runs the command on a file in all ways."""
    shard_rows = -(-rows // SHARDS)
    tenth, whole, resumed = (source.with_suffix(f".{name}") for name in ("tenth", "whole", "resumed"))
    of_a_tenth = run(command(source, tenth, shard_rows, "--limit", str(-(-rows // 10))))
    ended = run(command(source, whole, shard_rows))
    summary = json.loads(Path(f"{whole}.json").read_text(encoding="utf-8"))
    line = command(source, resumed, shard_rows)
    shards = killed_again_and_again(line, resumed, summary["seconds"], kills)
    tokens = summary["teacher_ids"] + summary["student_ids"]
    return Measured(
        kind=kind,
        rows=summary["rows"],
        tokens=tokens,
        input_bytes=source.stat().st_size,
        output_bytes=sum(path.stat().st_size for path in visible(whole)),
        seconds=ended.seconds,
        tokens_per_second=tokens / ended.seconds,
        tokens_per_second_aligning=summary["tokens_per_second_aligning"],
        peak_bytes=ended.peak_bytes,
        peak_bytes_of_a_tenth=of_a_tenth.peak_bytes,
        kills=len(shards),
        shards_when_killed=shards,
        same_bytes=contents(resumed) == contents(whole),
    )


# ---- Report ----------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    head = ["input", "tokens, both sides", "seconds", "tokens a second", "aligning alone"]
    memory = ["peak memory, MiB", "of a tenth of the rows, MiB"]
    made = table([*head, *memory, "kills", "the same bytes"], map(_cells, results["results"]), names=1)
    return f"{made}\n\n{said_of(results['machine'])}."


def _cells(each: Mapping[str, Any]) -> list[str]:
    return [
        each["kind"],
        f"{each['tokens']:,}",
        f"{each['seconds']:.1f}",
        f"{each['tokens_per_second']:,.0f}",
        f"{each['tokens_per_second_aligning']:,.0f}",
        *(f"{each[name] / 2**20:,.0f}" for name in ("peak_bytes", "peak_bytes_of_a_tenth")),
        str(each["kills"]),
        "yes" if each["same_bytes"] else "NO",
    ]


REPORT = Report("large", "Ten million tokens through `dskd align`, killed and resumed.", tables)


def measure(*, quick: bool) -> dict[str, Any]:
    """Both kinds of input, ready for JSON."""
    tokens, kills = (100_000, 2) if quick else (TOKENS, KILLS)
    names = [str(tokenizer(name)) for name in (TEACHER, STUDENT)]
    pair = TokenizerPair.load(*names, parse_special=False)
    with tempfile.TemporaryDirectory() as folder:
        ids, lines, rows, _ = write_inputs(Path(folder), pair, tokens)
        kinds = (("ids in Parquet", ids), ("text in JSON lines", lines))
        results = [asdict(measured(kind, source, rows, kills)) for kind, source in kinds]
    found = machine("numpy", "tokenizers", "sentencepiece")
    return {"machine": found, "teacher": TEACHER, "student": STUDENT, "results": results}


def main() -> None:
    """Measures, prints, writes; fails if a resumed job differs."""
    options = REPORT.parser(quick="a small file and two kills").parse_args()
    results = REPORT.run(options, lambda: measure(quick=options.quick))
    if not all(each["same_bytes"] for each in results["results"]):
        raise SystemExit("a job that was killed and resumed has other bytes than one that was not")


if __name__ == "__main__":
    main()
