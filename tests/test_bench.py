"""The benches `align.py` and `limits.py` say what they should; how fast it is stands in benches/README.md."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import assets
from conftest import needs_assets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BENCHES = Path(__file__).parents[1] / "benches"
PEERS = [
    "numpy_searchsorted",
    "numpy_scatter",
    "published_eta",
    "published_eta_with_conversion",
    "spacy_alignments",
]


def run_bench(name: str, *arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, str(BENCHES / f"{name}.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def fetch_assets() -> None:
    for name in ("deepseek-v3", "mistral-v3", "gpt2", "qwen2", "o200k"):
        assets.tokenizer(name)
    assets.prompt_rows("train", 1)
    assets.prose("multilingual")
    assets.translation("zh_Hans")


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON file of a quick run, and what it printed."""
    needs_assets(fetch_assets)
    output = tmp_path_factory.mktemp("bench") / "folder" / "align.json"
    return output, run_bench("align", "--quick", "--output", str(output))


@pytest.fixture(scope="module")
def results(quick_run: tuple[Path, str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(quick_run[0].read_text(encoding="utf-8"))
    return loaded


def peers_of(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and numbers of each peer on each batch."""
    for batch in results["batches"]:
        yield from ((name, numbers) for name, numbers in batch["results"].items() if name in PEERS)


def test_ratios_come_first(results: Mapping[str, Any]) -> None:
    assert list(results) == [
        "ratios",
        "targets",
        "machine",
        "rounds",
        "batches",
        "small",
        "containers",
    ]
    assert list(results["ratios"]) == PEERS
    for extremes in results["ratios"].values():
        assert 0 < extremes["lowest"] <= extremes["median"] <= extremes["highest"]


def test_what_was_reached_stands_beside_what_was_asked(results: Mapping[str, Any]) -> None:
    assert [(row["asked"], row["aim"]) for row in results["targets"]] == [
        (120, 150),
        (45, 50),
        (100, 130),
        (5, 7),
        (5, None),
        (1.0, None),
        (1.4, None),
        (1.5, None),
    ]
    assert all(row["reached"] > 0 for row in results["targets"])


def test_three_tokenizer_pairs_and_four_texts_are_measured(results: Mapping[str, Any]) -> None:
    assert len({(batch["teacher"], batch["student"], batch["text"]) for batch in results["batches"]}) == 12
    for batch in results["batches"]:
        assert batch["rows"] == 2
        assert 1_800 < batch["teacher_tokens"] < 2_300
        assert batch["pairs"] > 0


def test_every_contestant_is_timed(results: Mapping[str, Any]) -> None:
    for batch in results["batches"]:
        assert list(batch["results"]) == ["dskd", "dskd_everything", *PEERS]
        assert all(numbers["tokens_per_second"] > 0 for numbers in batch["results"].values())
    for small in results["small"]:
        assert list(small["microseconds"]) == ["dskd", *PEERS]
        assert small["teacher_tokens"] in range(14, 19)


def test_the_numpy_ways_find_every_pair_and_no_other(results: Mapping[str, Any]) -> None:
    numpy_ways = [numbers for name, numbers in peers_of(results) if name.startswith("numpy")]
    assert len(numpy_ways) == 24
    assert {(numbers["recall"], numbers["precision"]) for numbers in numpy_ways} == {(1.0, 1.0)}


def test_recall_and_precision_are_shares(results: Mapping[str, Any]) -> None:
    for name, numbers in peers_of(results):
        assert 0 <= numbers["recall"] <= 1, name
        assert 0 <= numbers["precision"] <= 1, name


def test_every_container_is_timed_with_one_thread_and_with_two(results: Mapping[str, Any]) -> None:
    containers = results["containers"]
    assert [containers["rows"], containers["threaded_rows"]] == [2, 32]
    *held, asarray = containers["results"].items()
    assert [name for name, _ in held] == [
        "Ragged",
        "2-D array, boolean mask",
        "2-D array, mask of 0 and 1",
        "list of arrays",
        "list of tensors",
        "list of lists",
    ]
    assert asarray[0] == "asarray"
    assert all(row["milliseconds"] > 0 and row["two_threads"] > 0 for _, row in held)
    assert held[0][1]["of_ragged"] == asarray[1]["of_asarray"] == 1


def test_the_tables_are_made_from_the_file(quick_run: tuple[Path, str]) -> None:
    output, printed = quick_run
    assert printed.startswith("Asked for on source, aimed at, and reached")
    assert run_bench("align", "--table", "--output", str(output)) == printed


@pytest.mark.parametrize("name", ["align", "limits"])
def test_the_readme_holds_the_tables_of_the_committed_file(name: str, tmp_path: Path) -> None:
    committed, copy = BENCHES / "results" / f"{name}.json", tmp_path / "copy.json"
    assert committed.exists(), "measure on a machine at rest: make bench bench-limits"
    copy.write_bytes(committed.read_bytes())
    assert run_bench(name, "--table", "--output", str(copy)) in (BENCHES / "README.md").read_text("utf-8")


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_wrong_number_of_rows_is_refused(number: str) -> None:
    command = [sys.executable, str(BENCHES / "align.py"), f"--rows={number}"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 2
    assert f"{number!r} is not a number from 1 on" in ended.stderr


# ---- limits.py -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_limits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON file of a quick run, and what it printed."""
    needs_assets(fetch_assets)
    output = tmp_path_factory.mktemp("limits") / "limits.json"
    return output, run_bench("limits", "--quick", "--besides", "the tests", "--output", str(output))


def test_every_limit_has_a_line_with_its_target(quick_limits: tuple[Path, str]) -> None:
    results = json.loads(quick_limits[0].read_text(encoding="utf-8"))
    assert list(results) == ["lines", "machine", "besides", "sizes"]
    targets: dict[str, list[float]] = {}
    for line in results["lines"]:
        targets.setdefault(line["unit"], []).append(line["target"])
        # A small batch may end before its signal; all else has been measured.
        assert line["value"] is not None or "ended before its signal" in line["note"], line
    children = [5] * len(multiprocessing.get_all_start_methods())
    assert targets == {
        "times": [1.6, 1.5, *[3] * 5, 1.5],
        "microseconds": [2],
        "bytes a token": [40] * 2,
        "s": [0.2, 1.5, 0.1, *children, *[0.2] * 8],
    }
    assert [line["at_least"] for line in results["lines"]] == [True, *[False] * (len(results["lines"]) - 1)]


def test_the_table_of_limits_is_made_from_the_file(quick_limits: tuple[Path, str]) -> None:
    output, printed = quick_limits
    assert printed.startswith("What is asked of alignment beside its speed:")
    assert "beside it ran: the tests." in printed
    assert run_bench("limits", "--table", "--output", str(output)) == printed
