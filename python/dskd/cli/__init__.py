"""The command line: `dskd inspect` draws two tokenizations of a text, `dskd align` aligns those of a file.

It needs more than the library (`pip install 'dskd[cli]'`). `main` says so where that is missing; what reads
tokenizers and writes Parquet is imported by the command that needs it. `dskd train`, the same as
`dskd-train`, is `dskd.train.script` and needs `dskd[train]`.

    commands <- drawing, progress, work <- shards <- rows_out, totals, rows_in (parquet_in) <- pair <- loading
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main", "main_train"]


def main() -> None:
    """The command `dskd`."""
    if sys.argv[1:2] == ["train"]:  # its options are those of a trainer: a parser of its own reads them
        main_train(sys.argv[2:])
        return
    _prepare()
    try:
        from dskd.cli.commands import application  # noqa: PLC0415 - whether it is there is the question

        application()()
    except ImportError as error:
        sys.exit(f"dskd: {error}; the command line needs more than the library: pip install 'dskd[cli]'")


def main_train(arguments: list[str] | None = None) -> None:
    """The command `dskd-train`."""
    _prepare()
    try:
        from dskd.train.script import main as train  # noqa: PLC0415 - the same
    except ImportError as error:
        sys.exit(f"dskd-train: {error}; training needs more than the library: pip install 'dskd[train]'")
    train(arguments)


def _prepare() -> None:
    """A job that its scheduler ends cleans up; what the terminal's encoding lacks is escaped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
