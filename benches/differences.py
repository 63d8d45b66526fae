"""Where two texts differ: the share of the pairs outside the differences that is found, and no false pair.

    python benches/differences.py            # measures, prints, writes results/differences.json and proof.md
    python benches/differences.py --table    # the same tables, from the results that are there
    python benches/differences.py --rows 20  # a shorter run (1,000 rows of about 3,000 characters)

What was done to a text is kept, so the true correspondence is known: a pair exists where both tokens are the
same piece of unchanged text. Five parts: one edit a row; five edits a row; text in NFD that the student's
tokenizer turns into NFC; source code whose white space one side collapses; a `<think>` block on one side, and
ids replaced by non-canonical ones. The published rule beside dskd in each. Last, on a few rows, what the slow
search of `dskd.reference` finds.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import corpus
import judge
from dskd import reference
from judge import batch_of, by_dskd, by_published_rule
from oracle import share, share_up
from parts import TOKENIZER_PAIRS, parts, rows_with_edits
from report import Report, machine, positive, said_of, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from judge import Batch, Found
    from parts import Part

MOST_OF_REFERENCE = 1.001
"""How many pairs the reference may find for one of the core's."""

def measure_pair(part: Part, teacher: str, student: str, examples: int) -> dict[str, Any]:
    """One pair of tokenizers on the rows of a part."""
    batch = batch_of(corpus.tokenizer(teacher), corpus.tokenizer(student), part.rows, part.rewrite)
    ours, theirs = by_dskd(batch), by_published_rule(batch)
    for index in np.argsort(-ours.missed, kind="stable")[:examples].tolist():
        print(f"  {_example(part, batch, ours, index)}", file=sys.stderr)
    return {
        "teacher": teacher,
        "student": student,
        "rows": len(batch.rows),
        "exist": ours.score.exist,
        "hit": ours.score.hit,
        "dskd": ours.as_json(),
        "published": theirs.as_json(),
    }


def _example(part: Part, batch: Batch, found: Found, index: int) -> str:
    """A row of which many pairs were missed, and around which changes."""
    row = part.rows[batch.rows[index]]
    raw = row.teacher.encode(), row.student.encode()
    ends = [(0, 0), *((teacher + length, student + length) for teacher, student, length in row.same)]
    starts = [*((teacher, student) for teacher, student, _ in row.same), (len(raw[0]), len(raw[1]))]
    changes = [
        (
            raw[0][end[0] : start[0]][:40].decode(errors="replace"),
            raw[1][end[1] : start[1]][:40].decode(errors="replace"),
        )
        for end, start in zip(ends, starts, strict=True)
        if end != start
    ]
    exist = batch.exist_in_row()[index]
    return f"row {batch.rows[index]}: {found.missed[index]} of {exist} missed; changes {changes[:5]}"


def measure(rows: int, examples: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """All that is measured, ready for JSON; prints what each part gave as soon as it is done."""
    started = time.monotonic()
    results: dict[str, Any] = {"machine": machine("numpy", "tokenizers", "sentencepiece"), "parts": [], "reference": None}
    for part in parts(rows):
        if not part.rows or (names and not any(name in part.name for name in names)):
            continue
        measured = [measure_pair(part, *names, examples) for names in part.pairs]
        results["parts"].append(_summed(part, measured))
        print(_line(results["parts"][-1]), f"({time.monotonic() - started:.0f} s)", flush=True)
        for name in {name for names in part.pairs for name in names}:
            corpus.tokenizer(name).forget()
    if not names:
        results["reference"] = beside_the_reference(max(2, rows // 100))
        print(_reference_line(results["reference"]), f"({time.monotonic() - started:.0f} s)", flush=True)
    results["seconds"] = round(time.monotonic() - started)
    return results


def beside_the_reference(count: int) -> dict[str, Any]:
    """Pairs of rows with five edits as the core finds them, and as the definition's slow search does."""
    rows = rows_with_edits(count, 5, seed=9)
    sides = [corpus.tokenizer(name) for name in TOKENIZER_PAIRS[0]]
    aligner = judge.aligner_of(*sides)
    teachers = sides[0].rows([row.teacher for row in rows])
    students = sides[1].rows([row.student for row in rows])
    core = by_reference = 0
    for teacher, student in zip(teachers, students, strict=True):
        core += len(aligner.align(teacher, student).pairs)
        ids = teacher.tolist(), student.tolist()
        by_reference += len(reference.align(aligner.teacher, aligner.student, *ids).pairs)
    met = by_reference <= MOST_OF_REFERENCE * core
    return {"rows": count, "core": core, "reference": by_reference, "met": met}


def _reference_line(found: Mapping[str, Any]) -> str:
    return (
        f"the reference on {found['rows']} rows with five edits: {found['reference']:,} pairs, the core "
        f"{found['core']:,}; at most {MOST_OF_REFERENCE - 1:.1%} more: {'met' if found['met'] else 'MISSED'}"
    )


def _summed(part: Part, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found, wrong = _found(part, measured), _wrong(part, measured)
    exist = sum(pair["exist"] for pair in measured)
    false = sum(pair["dskd"]["false"] for pair in measured)
    met = not false and exist > 0
    met = met and (part.target is None or found >= part.target)
    met = met and (part.most_wrong is None or wrong <= part.most_wrong)
    return {
        "name": part.name,
        "is_kind": part.is_kind,
        "rows": len(part.rows),
        "exist": exist,
        "found": found,
        "target": part.target,
        "wrong": wrong,
        "most_wrong": part.most_wrong,
        "false": false,
        "met": met,
        "pairs": list(measured),
    }


def _found(part: Part, measured: Sequence[Mapping[str, Any]]) -> float:
    """The share found of all pairs that exist; of a kind that of the tokenizers with the lowest."""
    if part.is_kind:
        return min(pair["dskd"]["recall"] for pair in measured)
    return share(sum(pair["hit"] for pair in measured), sum(pair["exist"] for pair in measured))


def _wrong(part: Part, measured: Sequence[Mapping[str, Any]]) -> float:
    """The share at wrong places of what is found and judged; of a kind that of the tokenizers with the highest."""
    counts = [(pair["dskd"]["elsewhere"], pair["dskd"]["judged"]) for pair in measured]
    if part.is_kind:
        return max(share_up(*count) for count in counts)
    return share_up(*(sum(column) for column in zip(*counts, strict=True)))


def failures(results: Mapping[str, Any]) -> list[str]:
    """The parts whose target was missed."""
    parts = [_line(part) for part in results["parts"] if not part["met"]]
    reference = results["reference"]
    return [*parts, *([_reference_line(reference)] if reference and not reference["met"] else [])]


def _line(part: Mapping[str, Any]) -> str:
    lowest = min(pair["dskd"]["recall"] for pair in part["pairs"])
    target = "no target" if part["target"] is None else f"target {part['target']}"
    return (
        f"{part['name']}: {part['found']:.5f} of {part['exist']:,} pairs found (lowest {lowest:.4f}; "
        f"{target}), {part['wrong']:.5f} at wrong places, {part['false']} false: "
        f"{'met' if part['met'] else 'MISSED'}"
    )


# ---- Tables ----------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    real = [part for part in results["parts"] if not part["is_kind"]]
    kinds = [part for part in results["parts"] if part["is_kind"]]
    return "\n\n".join([*_real_text(real), *_kinds(kinds), *_rest(results)])


def _real_text(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    if not parts:
        return []
    head = ["difference", "target", "rows", "pairs that exist", "found", "wrong places", "false", "", "M tokens/s"]
    head_of_pairs = [
        *("teacher", "student", "rows", "exist", "found", "elsewhere", "coverage", "ratio"),
        *("published: found", "elsewhere", "ratio"),
    ]
    found = ["Real text, all tokenizer pairs together:", table(head, map(_part_cells, parts))]
    for part in parts:
        found += [
            f"{part['name'][:1].upper()}{part['name'][1:]}:",
            table(head_of_pairs, map(_pair_cells, part["pairs"])),
        ]
    return found


def _kinds(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    if not parts:
        return []
    head = ["difference", "target", "rows", "pairs that exist", "found", "wrong places", "false", "", "M tokens/s"]
    head_of_pairs = [
        *("difference", "teacher", "student", "rows", "exist", "found", "elsewhere", "undecided"),
        *("published: found", "elsewhere"),
    ]
    pairs = [[part["name"], *_kind_cells(pair)] for part in parts for pair in part["pairs"]]
    return [
        "Repetitive text, of each kind the tokenizer pair on which least is found, and most at wrong places:",
        table(head, map(_part_cells, parts)),
        "Each tokenizer pair:",
        table(head_of_pairs, pairs, names=3),
    ]


def _rest(results: Mapping[str, Any]) -> list[str]:
    found = []
    if results["reference"]:
        compared = _reference_line(results["reference"])
        found.append(f"{compared[0].upper()}{compared[1:]}.")
    return [*found, f"{results['seconds']} s; {said_of(results['machine'])}."]


def _part_cells(part: Mapping[str, Any]) -> list[str]:
    targets = [f"{part['target']}"] if part["target"] is not None else []
    targets += [f"{part['most_wrong']} wrong"] if part["most_wrong"] is not None else []
    speeds = [pair["dskd"]["tokens_a_second"] for pair in part["pairs"]]
    return [
        part["name"],
        ", ".join(targets),
        f"{part['rows']:,}",
        f"{part['exist']:,}",
        f"{part['found']:.5f}",
        f"{part['wrong']:.5f}",
        str(part["false"]),
        "met" if part["met"] else "missed",
        f"{sum(speeds) / len(speeds) / 1e6:.2f}",
    ]


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    ours, theirs = pair["dskd"], pair["published"]
    return [
        *(pair["teacher"], pair["student"], f"{pair['rows']:,}", f"{pair['exist']:,}"),
        *(f"{ours['recall']:.5f}", f"{ours['elsewhere']:,}"),
        *(f"{ours['teacher_coverage']:.3f} and {ours['student_coverage']:.3f}", f"{ours['ratio']:.3f}"),
        *(f"{theirs['recall']:.5f}", f"{theirs['elsewhere']:,}", f"{theirs['ratio']:.3f}"),
    ]


def _kind_cells(pair: Mapping[str, Any]) -> list[str]:
    ours, theirs = pair["dskd"], pair["published"]
    return [
        *(pair["teacher"], pair["student"], f"{pair['rows']:,}", f"{pair['exist']:,}"),
        *(f"{ours['recall']:.5f}", f"{ours['elsewhere']:,}", f"{ours['undecided']:,}"),
        *(f"{theirs['recall']:.5f}", f"{theirs['elsewhere']:,}"),
    ]


# ---- The command line ------------------------------------------------------------------------------------


REPORT = Report("differences", "What is found where the two texts differ.", tables, "proof.md")


def main() -> None:
    """Measures, or reads what was measured, prints the tables; exits with 1 where a target is missed."""
    parser = REPORT.parser()
    parser.add_argument(
        "--rows", type=positive, default=1000, help="rows of edited text, of the rest a tenth (1000)"
    )
    parser.add_argument(
        "--part", action="append", default=[], help="only parts whose name has this; the page is left alone"
    )
    parser.add_argument("--examples", type=int, default=0, help="rows to show of which most was missed (0)")
    options = parser.parse_args()
    results = REPORT.run(options, lambda: measure(options.rows, options.examples, options.part))
    if failed := failures(results):
        sys.exit("\n".join(["Missed:", *failed]))


if __name__ == "__main__":
    main()
