"""What all benches share: options, the JSON file of what was measured, and the page that holds its tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dskd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Report:
    """A bench's results in `results/NAME.json`, and on a page the tables that are made of them.

    Attributes:
        name: of the file.
        title: what the bench is about, for its help.
        tables: makes Markdown of results.
        page: holds the tables between two marks that name the file.
    """

    name: str
    title: str
    tables: Callable[[Mapping[str, Any]], str]
    page: str = "README.md"

    @property
    def file(self) -> Path:
        """The JSON file that belongs to the repository."""
        return HERE / "results" / f"{self.name}.json"

    def parser(self, *, quick: str | None = None, besides: bool = False) -> argparse.ArgumentParser:
        """With the options that all benches have.

        Args:
            quick: what `--quick` does, where there is one.
            besides: whether there is `--besides`, to say what else ran on the machine.
        """
        parser = argparse.ArgumentParser(description=self.title)
        if quick is not None:
            parser.add_argument("--quick", action="store_true", help=quick)
        if besides:
            default, text = "nothing that is known of", "what else the machine does"
            parser.add_argument("--besides", default=default, help=text)
        parser.add_argument("--table", action="store_true", help="measure nothing, print what --output holds")
        told = f"the JSON file, if not that of the repository, which {self.page} follows"
        parser.add_argument("--output", type=Path, help=told)
        return parser

    def run(self, options: argparse.Namespace, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Measures, or reads what was measured; writes it and prints the tables.

        With `--quick` or `--part` nothing is written but to an `--output`.
        """
        if options.table:
            results: Mapping[str, Any] = self.read(options)
        else:
            results = measure()
            self.write(options, results)
        print(self.tables(results))
        if self._is_for_the_page(options):
            self.write_page(results)
        return results

    def _is_for_the_page(self, options: argparse.Namespace) -> bool:
        return (
            options.output is None
            and not getattr(options, "quick", False)
            and not getattr(options, "part", [])
        )

    def read(self, options: argparse.Namespace) -> dict[str, Any]:
        """The file of the options."""
        results: dict[str, Any] = json.loads((options.output or self.file).read_text(encoding="utf-8"))
        return results

    def write(self, options: argparse.Namespace, results: Mapping[str, Any]) -> None:
        """Writes the file of the options, whole or not at all, and its folder if that is not there."""
        if options.output is None and not self._is_for_the_page(options):
            return
        file: Path = options.output or self.file
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.part")
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(file)

    def write_page(self, results: Mapping[str, Any]) -> None:
        """Puts the tables between their marks on the page.

        Raises:
            ValueError: a mark is not there.
        """
        start, end = (f"<!-- {what} results/{self.name}.json -->" for what in ("tables from", "end of"))
        page = HERE / self.page
        text = page.read_text(encoding="utf-8")
        if not 0 <= text.find(start) < text.find(end):
            raise ValueError(f"{page.name} has no {start}, or no {end} behind it")
        before, rest = text.split(f"{start}\n", 1)
        after = rest.split(end, 1)[1]
        text = f"{before}{start}\n\n{self.tables(results)}\n\n{end}{after}"
        page.write_text(text, encoding="utf-8")


def machine(*packages: str) -> dict[str, Any]:
    """Where and with what this runs; these packages besides."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in packages},
        "dskd": dskd.__version__,
        "revision": revision(),
    }


def _cpu_model() -> str:
    """As the system calls it; of a virtual machine that says `AMD EPYC`, family and model tell which one."""
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except FileNotFoundError:
        return platform.processor()
    pairs = (line.partition(":")[::2] for line in processor.splitlines())
    told = {key.strip(): value.strip() for key, value in pairs}
    which = ", ".join(f"{key} {told[key]}" for key in ("cpu family", "model") if key in told)
    return f"{told.get('model name', platform.processor())}{which and f' ({which})'}"


def revision() -> str:
    """What git calls this checkout; `-dirty` where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(HERE), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def said_of(machine: Mapping[str, Any]) -> str:
    """One line of what `machine` found and what was added to it."""
    told = {key: value for key, value in machine.items() if key not in ("cpu", "cores")}
    versions = ", ".join(f"{key} {value}" for key, value in told.items())
    where = f"{machine['cpu']}, " if "cpu" in machine else ""
    return f"{where}{machine['cores']} cores; {versions}"


def table(head: Sequence[str], body: Iterable[Sequence[str]], names: int = 2) -> str:
    """A Markdown table; all columns but the first `names` are numbers."""
    lines = [head, ["---"] * names + ["---:"] * (len(head) - names), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def positive(text: str) -> int:
    """For argparse: a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)
