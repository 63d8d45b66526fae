"""Rows of text to train on: where they come from, and what a row must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from pyarrow import parquet

__all__ = ["load_rows"]

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(source: str, *, split: str = "train") -> datasets.Dataset:
    """The rows of a file or of a data set, each with a `prompt` and a `completion`.

    Both are strings, or both are messages, `[{"role": "user", "content": ...}]`; the completion is one.

    Args:
        source: a JSON lines or Parquet file, a folder or the hub name of a data set.
        split: of a data set; a file has only one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no rows, or a row is not as said above; it is named.
    """
    path = Path(source).expanduser()
    builder = _BUILDERS.get(path.suffix)
    if builder is None:
        rows = datasets.load_dataset(source, split=split)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    else:
        rows = _from_file(path, builder)
    _check(rows, source)
    return rows


def _from_file(path: Path, builder: str) -> datasets.Dataset:
    if builder == "json" and not path.read_bytes().strip():
        raise ValueError(f"{path} has no rows")
    try:
        return datasets.load_dataset(builder, data_files=str(path), split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        if builder == "parquet" and not parquet.read_metadata(path).num_rows:
            raise ValueError(f"{path} has no rows") from error
        raise ValueError(f"{path} cannot be read as {builder}: {error.__cause__ or error}") from error


def _check(rows: datasets.Dataset, source: str) -> None:
    if not len(rows):
        raise ValueError(f"{source} has no rows")
    if missing := {"prompt", "completion"}.difference(rows.column_names):
        raise ValueError(
            f"{source} has no column {' and no column '.join(sorted(missing))}, only "
            f"{', '.join(rows.column_names)}; rename them: every row is a prompt and a completion"
        )
    for index, row in enumerate(rows.select_columns(["prompt", "completion"])):
        if (fault := fault_of(row)) is not None:
            raise ValueError(f"{source}, row {index} (from 0): {fault}")


def fault_of(row: dict[str, Any]) -> str | None:
    """What is wrong with a row; None if nothing is."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return None if completion else "the completion is empty"
    if not isinstance(prompt, list) or not isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        return f"prompt and completion are {kinds}; both are strings, or both are lists of messages"
    if not prompt or not all(_is_message(message) for message in prompt):
        return "the prompt is one or more messages, each with a role and a content"
    if len(completion) != 1 or not _is_message(completion[0]) or not completion[0]["content"]:
        return "the completion is one message with a content"
    return None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
