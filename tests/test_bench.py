"""`benches/align.py` runs and says what it should; how fast anything is stands in benches/README.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import assets
from conftest import needs_assets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.timeout(600)  # the largest package that is fetched has 77 MB

BENCHES = Path(__file__).parents[1] / "benches"
PEERS = [
    "numpy_searchsorted",
    "numpy_scatter",
    "published_eta",
    "published_eta_with_conversion",
    "spacy_alignments",
]


def run_bench(*arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, str(BENCHES / "align.py"), *arguments]
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
    return output, run_bench("--quick", "--output", str(output))


@pytest.fixture(scope="module")
def results(quick_run: tuple[Path, str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(quick_run[0].read_text(encoding="utf-8"))
    return loaded


def peers_of(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and numbers of each peer on each batch."""
    for batch in results["batches"]:
        yield from ((name, numbers) for name, numbers in batch["results"].items() if name in PEERS)


def test_ratios_come_first(results: Mapping[str, Any]) -> None:
    assert list(results) == ["ratios", "targets", "machine", "rounds", "batches", "small"]
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


def test_the_tables_are_made_from_the_file(quick_run: tuple[Path, str]) -> None:
    output, printed = quick_run
    assert printed.startswith("Asked for on source, aimed at, and reached")
    assert run_bench("--table", "--output", str(output)) == printed


def test_the_readme_holds_the_tables_of_the_committed_file(tmp_path: Path) -> None:
    copy = tmp_path / "align.json"
    copy.write_bytes((BENCHES / "results" / "align.json").read_bytes())
    assert run_bench("--table", "--output", str(copy)) in (BENCHES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_wrong_number_of_rows_is_refused(number: str) -> None:
    command = [sys.executable, str(BENCHES / "align.py"), f"--rows={number}"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 2
    assert f"{number!r} is not a number from 1 on" in ended.stderr
