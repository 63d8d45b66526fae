"""Where two texts differ: the share of the pairs outside the differences that is found, and no false pair.

    python benches/differences.py             # measures, prints, writes results/differences.json, proof.md
    python benches/differences.py --table     # the same tables, from the results that are there
    python benches/differences.py --rows 20   # a shorter run (1,000 rows of about 3,000 characters)
    python benches/differences.py --part list # the parts with `list` in their names; the page is left alone

What was done to a text is kept, so the true correspondence is known: a pair exists where both tokens are the
same piece of unchanged text. `parts` lists what is measured: real text with edits, in NFD, with other white
space, behind a `<think>` block, with other ids of the same bytes; and repetitive text with a small difference
a line. The published rule beside dskd in each. Then what is paired by chance in two texts that have nothing
to do with each other, and, on a few rows, what the slow search of `dskd.reference` finds.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import corpus
import judge
import slides
from dskd import reference
from judge import batch_of, by_dskd, by_published_rule
from oracle import share, share_up
from parts import KIND_PAIRS, TOKENIZER_PAIRS, parts
from real_text import rows_with_edits, unrelated_rows
from report import Report, machine, positive, said_of, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from judge import Batch, Found, Row
    from parts import Part

MOST_OF_REFERENCE = 1.001
"""How many pairs the reference may find for one of the core's."""
REFERENCE, UNRELATED = "the reference", "unrelated texts"
"""What is measured besides the parts, as `--part` has it."""


# ---- Measuring -------------------------------------------------------------------------------------------


def measure(rows: int, examples: int, names: Sequence[str]) -> dict[str, Any]:
    """All that is measured, or what has one of these in its name, ready for JSON.

    Prints what each part gave as soon as it is done.
    """
    started = time.monotonic()
    _refuse_unknown(names)
    results: dict[str, Any] = {"machine": machine("numpy", "tokenizers", "sentencepiece")}
    results |= {"parts": [], "unrelated": None, "reference": None}
    for part in parts(rows):
        if _is_wanted(part.name, names):
            results["parts"].append(measure_part(part, examples))
            print(_line(results["parts"][-1]), f"({time.monotonic() - started:.0f} s)", flush=True)
    if _is_wanted(UNRELATED, names):
        results["unrelated"] = in_unrelated_texts(max(2, rows // 10))
    if _is_wanted(REFERENCE, names):
        results["reference"] = beside_the_reference(max(2, rows // 100))
        print(_reference_line(results["reference"]), f"({time.monotonic() - started:.0f} s)", flush=True)
    results["seconds"] = round(time.monotonic() - started)
    return results


def _refuse_unknown(names: Sequence[str]) -> None:
    known = [*(part.name for part in parts(1)), UNRELATED, REFERENCE]
    for name in names:
        if not any(name in one for one in known):
            sys.exit(f"no part has {name!r} in its name; there are {', '.join(known)}")


def _is_wanted(name: str, names: Sequence[str]) -> bool:
    return not names or any(wanted in name for wanted in names)


def measure_part(part: Part, examples: int) -> dict[str, Any]:
    """A part on all its tokenizer pairs."""
    rows = part.rows()
    measured = [measure_pair(part, rows, *sides, examples) for sides in part.pairs]
    for name in {name for sides in part.pairs for name in sides}:
        corpus.tokenizer(name).forget()
    return _summed(part, len(rows), measured)


def measure_pair(
    part: Part, rows: Sequence[Row], teacher: str, student: str, examples: int
) -> dict[str, Any]:
    """One pair of tokenizers on the rows of a part."""
    sides = corpus.tokenizer(teacher), corpus.tokenizer(student)
    batch = batch_of(*sides, rows, part.rewrite, part.rewrite_teacher)
    ours, theirs = by_dskd(batch), by_published_rule(batch)
    for index in np.argsort(-ours.missed, kind="stable")[:examples].tolist():
        print(f"  {_example(rows, batch, ours, index)}", file=sys.stderr)
    return {
        "teacher": teacher,
        "student": student,
        "rows": len(batch.rows),
        "exist": ours.score.exist,
        "hit": ours.score.hit,
        "dskd": ours.as_json(),
        "published": theirs.as_json(),
    }


def _example(rows: Sequence[Row], batch: Batch, found: Found, index: int) -> str:
    """A row of which many pairs were missed, and around which changes."""
    row = rows[batch.rows[index]]
    teacher, student = row.teacher.encode(), row.student.encode()
    changes = [
        tuple(
            side[start:end][:40].decode(errors="replace")
            for side, start, end in (
                (teacher, box.teacher_start, box.teacher_end),
                (student, box.student_start, box.student_end),
            )
        )
        for box in slides.gaps(row.same, (len(teacher), len(student)))
    ]
    exist = batch.exist_in_row()[index]
    return f"row {batch.rows[index]}: {found.missed[index]} of {exist} missed; changes {changes[:5]}"


def _summed(part: Part, rows: int, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found, wrong = _found(part, measured), _wrong(part, measured)
    exist = sum(pair["exist"] for pair in measured)
    false = sum(pair["dskd"]["false"] for pair in measured)
    enough = part.target is None or (exist > 0 and found >= part.target)
    few_wrong = part.most_wrong is None or wrong <= part.most_wrong
    return {
        "name": part.name,
        "repeats": part.repeats,
        "rows": rows,
        "exist": exist,
        "found": found,
        "target": part.target,
        "wrong": wrong,
        "most_wrong": part.most_wrong,
        "false": false,
        "met": enough and few_wrong and not false,
        "pairs": list(measured),
    }


def _found(part: Part, measured: Sequence[Mapping[str, Any]]) -> float:
    """The share of the existing pairs that is found; of repetitive text, the lowest of a tokenizer pair."""
    if part.repeats:
        return float(min(pair["dskd"]["recall"] for pair in measured))
    return share(sum(pair["hit"] for pair in measured), sum(pair["exist"] for pair in measured))


def _wrong(part: Part, measured: Sequence[Mapping[str, Any]]) -> float:
    """The share at wrong places of the pairs found and judged; of repetitive text, the highest."""
    counts = [(pair["dskd"]["elsewhere"], pair["dskd"]["judged"]) for pair in measured]
    if part.repeats:
        return max(share_up(*count) for count in counts)
    return share_up(sum(wrong for wrong, _ in counts), sum(judged for _, judged in counts))


def in_unrelated_texts(count: int) -> list[dict[str, Any]]:
    """What is paired, by chance, in rows whose sides read texts that have nothing to do with each other."""
    rows = unrelated_rows(count)
    found = []
    for names in KIND_PAIRS:
        batch = batch_of(corpus.tokenizer(names[0]), corpus.tokenizer(names[1]), rows)
        ours, theirs = by_dskd(batch).as_json(), by_published_rule(batch).as_json()
        sides = dict(zip(("teacher", "student"), names, strict=True))
        found.append({**sides, "rows": len(batch.rows), "dskd": ours, "published": theirs})
        print(_unrelated_line(found[-1]), flush=True)
    return found


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


# ---- In a line -------------------------------------------------------------------------------------------


def failures(results: Mapping[str, Any]) -> list[str]:
    """What missed its target, and where pairs are false."""
    parts = [_line(part) for part in results["parts"] if not part["met"]]
    false = [_unrelated_line(pair) for pair in results["unrelated"] or [] if pair["dskd"]["false"]]
    beside = results["reference"]
    return [*parts, *false, *([_reference_line(beside)] if beside and not beside["met"] else [])]


def _line(part: Mapping[str, Any]) -> str:
    lowest = min(pair["dskd"]["recall"] for pair in part["pairs"])
    return (
        f"{part['name']}: {part['found']:.5f} of {part['exist']:,} pairs found (lowest {lowest:.4f}), "
        f"{part['wrong']:.5f} at wrong places ({_targets(part) or 'no target'}), {part['false']} false: "
        f"{'met' if part['met'] else 'MISSED'}"
    )


def _targets(part: Mapping[str, Any]) -> str:
    targets = [f"{part['target']}"] if part["target"] is not None else []
    return ", ".join([*targets, *([f"wrong {part['most_wrong']}"] if part["most_wrong"] is not None else [])])


def _unrelated_line(pair: Mapping[str, Any]) -> str:
    return (
        f"{UNRELATED}, {pair['teacher']} to {pair['student']}, {pair['rows']} rows: "
        f"{pair['dskd']['ratio']:.5f} of the student's tokens in pairs, by the published rule "
        f"{pair['published']['ratio']:.5f}; {pair['dskd']['false']} false"
    )


def _reference_line(found: Mapping[str, Any]) -> str:
    return (
        f"{REFERENCE} on {found['rows']} rows with five edits: {found['reference']:,} pairs, the core "
        f"{found['core']:,}; at most {MOST_OF_REFERENCE - 1:.1%} more: {'met' if found['met'] else 'MISSED'}"
    )


# ---- Tables ----------------------------------------------------------------------------------------------


HEAD = (
    "difference",
    "target",
    "rows",
    "pairs that exist",
    "found",
    "wrong places",
    "false",
    "",
    "M tokens/s",
)


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    real = [part for part in results["parts"] if not part["repeats"]]
    repetitive = [part for part in results["parts"] if part["repeats"]]
    parts = [*(_real_text(real) if real else []), *(_repetitive_text(repetitive) if repetitive else [])]
    if results["unrelated"]:
        parts += _unrelated(results["unrelated"])
    if results["reference"]:
        compared = _reference_line(results["reference"])
        parts += [f"{compared[0].upper()}{compared[1:]}."]
    return "\n\n".join([*parts, f"{results['seconds']} s; {said_of(results['machine'])}."])


def _real_text(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    head = [
        *("teacher", "student", "rows", "exist", "found", "elsewhere", "coverage", "ratio"),
        *("published: found", "elsewhere", "ratio"),
    ]
    found = ["Real text, all tokenizer pairs together:", table(HEAD, map(_part_cells, parts))]
    for part in parts:
        title = f"{part['name'][:1].upper()}{part['name'][1:]}:"
        found += [title, table(head, map(_pair_cells, part["pairs"]))]
    return found


def _repetitive_text(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    head = [
        *("difference", "teacher", "student", "rows", "exist", "found", "elsewhere", "not judged"),
        *("published: found", "elsewhere"),
    ]
    cells = [[part["name"], *_repetitive_cells(pair)] for part in parts for pair in part["pairs"]]
    return [
        "Repetitive text, of each kind the lowest share found and the highest at wrong places:",
        table(HEAD, map(_part_cells, parts)),
        "Each tokenizer pair:",
        table(head, cells, names=3),
    ]


def _unrelated(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["teacher", "student", "rows", "in pairs", "false", "published: in pairs"]
    cells = [
        [
            *(pair["teacher"], pair["student"], f"{pair['rows']:,}", f"{pair['dskd']['ratio']:.5f}"),
            *(str(pair["dskd"]["false"]), f"{pair['published']['ratio']:.5f}"),
        ]
        for pair in pairs
    ]
    return ["Two unrelated texts, the share of the student's tokens in pairs:", table(head, cells)]


def _part_cells(part: Mapping[str, Any]) -> list[str]:
    speeds = [pair["dskd"]["tokens_a_second"] for pair in part["pairs"]]
    return [
        *(part["name"], _targets(part), f"{part['rows']:,}", f"{part['exist']:,}"),
        *(f"{part['found']:.5f}", f"{part['wrong']:.5f}", str(part["false"])),
        *("met" if part["met"] else "missed", f"{sum(speeds) / len(speeds) / 1e6:.2f}"),
    ]


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    ours, theirs = pair["dskd"], pair["published"]
    return [
        *(pair["teacher"], pair["student"], f"{pair['rows']:,}", f"{pair['exist']:,}"),
        *(f"{ours['recall']:.5f}", f"{ours['elsewhere']:,}"),
        *(f"{ours['teacher_coverage']:.3f} and {ours['student_coverage']:.3f}", f"{ours['ratio']:.3f}"),
        *(f"{theirs['recall']:.5f}", f"{theirs['elsewhere']:,}", f"{theirs['ratio']:.3f}"),
    ]


def _repetitive_cells(pair: Mapping[str, Any]) -> list[str]:
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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # nothing is forked here
    results = REPORT.run(options, lambda: measure(options.rows, options.examples, options.part))
    if failed := failures(results):
        sys.exit("\n".join(["Missed:", *failed]))


if __name__ == "__main__":
    main()
