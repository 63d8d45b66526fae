"""The command line: `dskd inspect` draws two tokenizations of a text, `dskd align` aligns those of a file.

It needs more than the library (`pip install 'dskd[cli]'`). `main` says so where that is missing; what reads
tokenizers and writes Parquet is imported by the command that needs it.

    commands <- drawing, totals, rows_in, rows_out <- pair <- loading
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """The command `dskd`."""
    # A job that its scheduler ends cleans up, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what its encoding lacks is escaped, instead of an error
            stream.reconfigure(errors="backslashreplace")
    try:
        from dskd.cli.commands import application  # noqa: PLC0415 - whether it is there is the question

        application()()
    except ImportError as error:
        sys.exit(f"dskd: {error}; the command line needs more than the library: pip install 'dskd[cli]'")
