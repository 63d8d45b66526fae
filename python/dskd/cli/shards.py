"""A folder of shards that grows one by one, and goes on after the process was killed at any moment.

    part-000000.parquet ...    so many rows each; a shard is there whole or not at all
    .manifest.jsonl            what the job is; then, a line each, the shards that are done and where to go on

A shard is written under another name, synced, renamed and only then put into the manifest. So a shard that
the manifest does not name was not finished, and is made again; a last line that is cut was not written. What
the folder holds in the end depends on nothing but the job. The manifest's name begins with a dot, so that
readers of a folder of Parquet (pyarrow, datasets, Ray) pass over it.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dskd.cli.rows import InputError, Place
from dskd.cli.rows_out import sync, written_aside
from dskd.cli.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from dskd.cli.rows import Rows

__all__ = ["Shards", "opened"]

_MANIFEST = ".manifest.jsonl"
_START_OVER = "the same command with --overwrite starts over, another --output leaves it alone"


@dataclass(slots=True)
class Shards:
    """The shards of a job that are done.

    Attributes:
        folder: where they are.
        count: how many they are.
        place: where in the input the next one begins.
        totals: the sums over all of them.
        complete: whether there are no more to come.
    """

    folder: Path
    count: int
    place: Place
    totals: Totals
    complete: bool = False

    def add(self, write: Callable[[Path], Totals], rows: Rows) -> None:
        """Makes the next one.

        Args:
            write: reads its rows, writes them to this path, and returns the sums over them.
            rows: what it reads from; where that ends the next one begins.
        """
        path = self.folder / _name(self.count)
        with written_aside(path) as aside:
            totals = write(aside)
        self.count, self.place = self.count + 1, rows.place
        self.totals.add_totals(totals)
        done = {"shard": path.name, "bytes": path.stat().st_size}
        self._append({**done, "next": asdict(rows.place), "totals": totals.to_json()})

    def finish(self) -> None:
        """Says that there are no more to come."""
        self.complete = True
        self._append({"complete": True})

    def discard(self) -> None:
        """Removes the folder of a job that has no shards."""
        (self.folder / _MANIFEST).unlink()
        self.folder.rmdir()

    def _append(self, entry: Mapping[str, Any]) -> None:
        with (self.folder / _MANIFEST).open("ab") as manifest:
            manifest.write(_line(entry))
            manifest.flush()
            os.fsync(manifest.fileno())


@contextlib.contextmanager
def opened(folder: Path, job: Mapping[str, Any], *, overwrite: bool) -> Iterator[Shards]:
    """The shards in this folder, which is made if it is not there, and nobody else's meanwhile.

    Args:
        folder: where they are or will be.
        job: all that the result depends on, as JSON has it.
        overwrite: whether to start over, whatever job the folder is of.

    Raises:
        InputError: the folder is of another job, or of none; a shard is missing; another process is at work.
    """
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        entries = _entries(folder)
        if entries is None:
            _refuse_what_is_of_no_job(folder)
        if entries is None or overwrite:
            entries = [{"job": dict(job)}]
            with written_aside(folder / _MANIFEST) as aside:
                aside.write_bytes(_line(entries[0]))
        _refuse_other_job(folder, entries[0]["job"], job)
        done = [entry for entry in entries if "shard" in entry]
        _sweep(folder, {entry["shard"]: entry["bytes"] for entry in done})
        totals = Totals()
        for entry in done:
            totals.add_totals(Totals.from_json(entry["totals"]))
        place = Place(**done[-1]["next"]) if done else Place()
        yield Shards(folder, len(done), place, totals, complete="complete" in entries[-1])


def _name(index: int) -> str:
    return f"part-{index:06}.parquet"


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _entries(folder: Path) -> list[dict[str, Any]] | None:
    """The lines of the manifest; what is behind the last whole one is cut off. None if there is none."""
    path = folder / _MANIFEST
    if not path.exists():
        return None
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))
        del lines[-1]
    try:
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
        is_one = "job" in entries[0]
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path} is no manifest of dskd align; name another --output") from error
    if not is_one:
        raise InputError(f"{path} is no manifest of dskd align; name another --output")
    return entries


def _refuse_what_is_of_no_job(folder: Path) -> None:
    strange = [path.name for path in folder.iterdir() if not path.name.startswith(_MANIFEST_ASIDE)]
    if strange:
        raise InputError(
            f"{folder} holds {min(strange)} and is no folder of dskd align's shards; name another --output"
        )


_MANIFEST_ASIDE = f".{_MANIFEST}."


def _refuse_other_job(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in [*before, *now]:
        then, today = before.get(name), now.get(name)
        if then != today:
            raise InputError(f"{folder}: {name} was {then} when it was begun and is {today}; {_START_OVER}")


def _sweep(folder: Path, done: Mapping[str, int]) -> None:
    """Removes what was not finished, and refuses to go on where something finished is gone."""
    for name, size in done.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path} is missing or was changed since it was written; {_START_OVER}")
    for path in folder.iterdir():
        unfinished = path.name.startswith("part-") and path.name not in done
        if unfinished or path.name.startswith((".part-", _MANIFEST_ASIDE)):
            path.unlink()
    sync(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out until this one ends, however it does; where the system has such locks."""
    try:
        import fcntl  # noqa: PLC0415 - Windows has none
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"another dskd align is writing to {folder}; wait for it, or end it") from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)
