"""Recall and precision on every ordered pair of real tokenizers, by the oracle of byte spans.

    python benches/recall.py            # measures, prints, writes results/recall.json and proof.md's tables
    python benches/recall.py --table    # the same tables, from the results that are there
    python benches/recall.py --rows 2   # a shorter run: two rows of each kind of text

A tokenizer is lossless where the bytes of the ids joined are the text, but for one leading space. Between
lossless ones every pair of tokens with one span must be found and no other: the command fails otherwise. For
the others it says how much is covered. Tokenizers that are added to examples/assets.py join by themselves.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import corpus
import judge
from judge import Row, batch_of, by_dskd, by_published_rule, same_row, space_before
from oracle import share
from report import Report, machine, positive, said_of, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corpus import Tokenizer

CHARACTERS = 1000
LOSSLESS = 0.95
"""Share of rows that a tokenizer must say as they are; NFD or a literal `▁` in a golden string may be one."""


def texts(rows: int) -> dict[str, list[str]]:
    """Rows by kind of text; `rows` of source code and of instructions, a tenth as many of each language."""
    rng = random.Random(2026)  # noqa: S311 - the same at every run is the point
    long = corpus.long_texts()
    each = max(1, rows // 10)
    kinds = {
        name: corpus.windows(long[name], rows, CHARACTERS, rng)
        for name in ("source", "instructions", "multilingual")
    }
    kinds |= {
        language: corpus.windows(text, each, CHARACTERS, rng)
        for language, text in corpus.translations().items()
    }
    return {**kinds, "emoji": corpus.emoji(), "golden": corpus.golden_strings()}


def known_tokenizers(names: Sequence[str]) -> tuple[list[Tokenizer], dict[str, str]]:
    """Those that dskd takes, and why it refuses the others."""
    taken: list[Tokenizer] = []
    refused: dict[str, str] = {}
    for name in names:
        try:
            taken.append(corpus.tokenizer(name))
        except ValueError as error:
            refused[name] = str(error)
    return taken, refused


def said_as_written(side: Tokenizer, rows: Sequence[Row]) -> float:
    """The share of rows whose ids have the bytes of the text."""
    ids = side.rows([row.teacher for row in rows])
    said = [space_before(side, row_ids, row.teacher) for row, row_ids in zip(rows, ids, strict=True)]
    return share(sum(space is not None for space in said), len(said))


def measure_lossless(teacher: Tokenizer, student: Tokenizer, rows: Sequence[Row]) -> dict[str, Any]:
    """Pairs found of those that exist, on the rows that both say as they are."""
    batch = batch_of(teacher, student, rows)
    return {
        "teacher": teacher.name,
        "student": student.name,
        "rows": len(batch.rows),
        "pairs": len(batch.exact),
        "dskd": by_dskd(batch).as_json(),
        "published": by_published_rule(batch).as_json(),
    }


def measure_lossy(teacher: Tokenizer, student: Tokenizer, rows: Sequence[Row]) -> dict[str, Any]:
    """How much of the text is covered, on all rows."""
    texts = [row.teacher for row in rows]
    ids = [[row.tolist() for row in side.rows(texts)] for side in (teacher, student)]
    total = judge.aligner_of(teacher, student).align(*ids, num_threads=1).counts.total()
    published = sum(map(len, judge.published_pairs(teacher, student, *ids)))
    return {
        "teacher": teacher.name,
        "student": student.name,
        "rows": len(rows),
        "teacher_coverage": round(float(total.coverage.teacher[0]), 5),
        "student_coverage": round(float(total.coverage.student[0]), 5),
        "ratio": round(float(total.ratio[0]), 5),
        "published_ratio": share(published, int(total.student_tokens[0])),
    }


def measure(count: int, names: Sequence[str]) -> dict[str, Any]:
    """All that is measured, ready for JSON."""
    started = time.monotonic()
    kinds = texts(count)
    rows = [same_row(text) for text in itertools.chain.from_iterable(kinds.values())]
    taken, refused = known_tokenizers(names)
    said = {side.name: said_as_written(side, rows) for side in taken}
    results: dict[str, Any] = {
        "machine": machine("numpy", "tokenizers", "sentencepiece"),
        "rows": {kind: len(those) for kind, those in kinds.items()},
        "rows_said_as_written": said,
        "refused": refused,
        "lossless": [],
        "lossy": [],
    }
    for teacher, student in itertools.permutations(taken, 2):
        if min(said[teacher.name], said[student.name]) >= LOSSLESS:
            results["lossless"].append(measure_lossless(teacher, student, rows))
            print(_lossless_line(results["lossless"][-1]), flush=True)
        else:
            results["lossy"].append(measure_lossy(teacher, student, rows))
            print(_lossy_line(results["lossy"][-1]), flush=True)
    results["seconds"] = round(time.monotonic() - started)
    return results


def failures(results: Mapping[str, Any]) -> list[str]:
    """The lossless pairs on which anything is missing or wrong; and that there are none of them."""
    found = [_lossless_line(pair) for pair in results["lossless"] if not _is_exact(pair)]
    return found if results["lossless"] else ["there is no pair of lossless tokenizers"]


def _is_exact(pair: Mapping[str, Any]) -> bool:
    """Whether the pairs that exist were found and no other, and all text is in chunks."""
    ours = pair["dskd"]
    shares = (ours["recall"], ours["precision"], ours["teacher_coverage"], ours["student_coverage"])
    return shares == (1, 1, 1, 1) and ours["pairs"] == pair["pairs"] and not ours["false"]


def _lossless_line(pair: Mapping[str, Any]) -> str:
    shares = [f"{pair[rule][name]:.3f}" for rule in ("dskd", "published") for name in ("recall", "precision")]
    return (
        f"{pair['teacher']} to {pair['student']}, {pair['rows']} rows, {pair['pairs']:,} pairs: recall "
        f"{shares[0]}, precision {shares[1]}; published rule {shares[2]}, {shares[3]}"
    )


def _lossy_line(pair: Mapping[str, Any]) -> str:
    return (
        f"{pair['teacher']} to {pair['student']}, {pair['rows']} rows: coverage "
        f"{pair['teacher_coverage']:.3f} and {pair['student_coverage']:.3f}, ratio {pair['ratio']:.3f}; "
        f"published rule's ratio {pair['published_ratio']:.3f}"
    )


# ---- Tables ----------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    parts = [
        _summary(results),
        "Recall of dskd / of the published rule, teachers down, students across:",
        _matrix(results["lossless"]),
    ]
    if results["lossy"]:
        head = ["teacher", "student", "teacher covered", "student covered", "ratio", "published ratio"]
        parts += [
            "Where a side loses text: bytes in chunks, and student tokens in pairs.",
            table(head, map(_lossy_cells, results["lossy"])),
        ]
    parts += [f"Refused: {name}, since {reason}" for name, reason in results["refused"].items()]
    return "\n\n".join(parts)


def _summary(results: Mapping[str, Any]) -> str:
    pairs = results["lossless"]
    languages = [kind for kind in results["rows"] if kind in corpus.LANGUAGES]
    ours = [pair["dskd"][name] for pair in pairs for name in ("recall", "precision")]
    theirs = [pair["published"]["recall"] for pair in pairs]
    exist = sum(pair["pairs"] for pair in pairs)
    return (
        f"{len(pairs)} ordered pairs of {len({pair['teacher'] for pair in pairs})} lossless tokenizers on "
        f"{sum(results['rows'].values())} rows: source code, instructions, a text in 20 languages, Django's "
        f"translations into {len(languages)}, emoji and golden strings; {exist:,} pairs of tokens exist. "
        f"Lowest recall or precision of dskd: {min(ours):.3f}. Recall of the published rule: "
        f"{min(theirs):.3f} to {max(theirs):.3f}, median {statistics.median(theirs):.3f}; its precision is "
        f"{min(pair['published']['precision'] for pair in pairs):.3f} at the lowest. "
        f"{results['seconds']} s; {said_of(results['machine'])}."
    )


def _matrix(pairs: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(pair["teacher"] for pair in pairs))
    recall = {
        (pair["teacher"], pair["student"]): " / ".join(
            f"{pair[rule]['recall']:.3f}" for rule in ("dskd", "published")
        )
        for pair in pairs
    }
    body = [[teacher, *(recall.get((teacher, student), "") for student in names)] for teacher in names]
    return table(["", *names], body, names=1)


def _lossy_cells(pair: Mapping[str, Any]) -> list[str]:
    names = ("teacher_coverage", "student_coverage", "ratio", "published_ratio")
    return [pair["teacher"], pair["student"], *(f"{pair[name]:.3f}" for name in names)]


# ---- The command line ------------------------------------------------------------------------------------


REPORT = Report("recall", "Recall and precision on every pair of real tokenizers.", tables, "proof.md")


def main() -> None:
    """Measures, or reads what was measured, prints the tables; exits with 1 where a pair is missed."""
    parser = REPORT.parser()
    parser.add_argument(
        "--rows", type=positive, default=20, help="rows of source code, of a language a tenth (20)"
    )
    parser.add_argument(
        "--tokenizers", nargs="+", choices=corpus.names(), default=corpus.names(), help="these only (all)"
    )
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # nothing is forked here
    results = REPORT.run(options, lambda: measure(options.rows, options.tokenizers))
    if failed := failures(results):
        sys.exit("\n".join(["Missed the target of 1.000:", *failed]))


if __name__ == "__main__":
    main()
