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

import random
import re
import sys
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import corpus
import judge
import oracle
from dskd import reference
from judge import Row, batch_of, by_dskd, by_published_rule, same_row
from oracle import Change, share
from report import Report, machine, positive, said_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from corpus import Tokenizer
    from judge import Batch, Found, Ids

CHARACTERS = 3000
LONGEST_EDIT = 200
SPLIT_SHARE = 0.2
MOST_OF_REFERENCE = 1.001
"""How many pairs the reference may find for one of the core's."""

TOKENIZER_PAIRS = (
    ("deepseek-v3", "mistral-v1"),
    ("gpt2", "qwen2"),
    ("mistral-v3", "qwen2"),
    ("llama3", "gemma4"),
    ("llama2", "gpt-neox"),
    ("deepseek-llm", "phi3"),
    ("falcon", "smollm2"),
    ("qwen2", "smollm2"),
    ("gemma4", "deepseek-v3"),
    ("starcoder", "llama2"),
)
NFC_PAIRS = (("deepseek-v3", "qwen2"), ("llama3", "qwen2"), ("mistral-v1", "qwen2"))
"""The students turn NFD into NFC, the teachers read it as it is."""
LANGUAGES_WITH_MARKS = {"French": "fr", "Vietnamese": "vi", "Hindi": "hi"}


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of difference.

    Attributes:
        name: what is different.
        rows: what the sides read.
        pairs: teachers and students.
        target: the lowest share of the existing pairs that must be found; None where none is set.
        respell: what replaces the student's ids, if anything.
    """

    name: str
    rows: Sequence[Row]
    pairs: Sequence[tuple[str, str]]
    target: float | None
    respell: Callable[[Tokenizer, Ids], Ids] | None = None


# ---- The texts -------------------------------------------------------------------------------------------


def edited(text: str, count: int, inserts: str, rng: random.Random) -> list[Change]:
    """`count` edits that do not touch each other; what comes in is taken from `inserts`.

    A third each inserts, deletes and replaces, 1 to 200 characters. Edits whose result is not in NFC are
    drawn anew, since a tokenizer that normalises would change more than the edit.
    """
    while True:
        changes = _edits(len(text), count, inserts, rng)
        if unicodedata.is_normalized("NFC", oracle.changed(text, changes)):
            return changes


def _edits(length: int, count: int, inserts: str, rng: random.Random) -> list[Change]:
    kinds = [rng.choice(("insert", "delete", "replace")) for _ in range(count)]
    removed = [0 if kind == "insert" else rng.randint(1, LONGEST_EDIT) for kind in kinds]
    places = sorted(rng.sample(range(length - sum(removed) + 1), count))
    changes: list[Change] = []
    before = 0
    for kind, gone, place in zip(kinds, removed, places, strict=True):
        new = "" if kind == "delete" else _taken(inserts, rng)
        changes.append(Change(place + before, place + before + gone, new))
        before += gone
    return changes


def _taken(inserts: str, rng: random.Random) -> str:
    length = rng.randint(1, LONGEST_EDIT)
    start = rng.randrange(len(inserts) - length)
    return inserts[start : start + length]


def rows_with_edits(count: int, edits: int, seed: int) -> list[Row]:
    """Real text; one side, drawn for each row, reads it after its edits, which bring in text of its kind."""
    rng = random.Random(seed)  # noqa: S311 - the same at every run is the point
    rows = []
    for name, text in corpus.passages(count, CHARACTERS, rng):
        row = _changed_row(text, edited(text, edits, corpus.long_texts()[name], rng))
        swap = rng.random() < 0.5  # noqa: PLR2004 - either side
        rows.append(Row(row.student, row.teacher, oracle.swapped(row.same)) if swap else row)
    return rows


def _changed_row(text: str, changes: Sequence[Change]) -> Row:
    """The teacher reads the text, the student the changed one."""
    return Row(text, oracle.changed(text, changes), oracle.pieces(text, changes))


def rows_in_nfd(language: str, count: int) -> list[Row]:
    """The teacher reads NFD, the student what NFC makes of it."""
    rng = random.Random(language)  # noqa: S311
    texts = corpus.windows(corpus.in_language(language), count, CHARACTERS, rng)
    rows = (_changed_row(text, oracle.decompositions(text)) for text in texts)
    return [Row(row.student, row.teacher, oracle.swapped(row.same)) for row in rows]


def rows_with_composed_nukta(count: int) -> list[Row]:
    """Hindi: the teacher reads letters with a nukta as one character each, which NFC takes apart.

    These eight are what Unicode excludes from composition; besides them NFD changes hardly anything in Hindi.
    """
    composed = {unicodedata.normalize("NFC", chr(code)): chr(code) for code in range(0x0958, 0x0960)}
    rng = random.Random("nukta")  # noqa: S311
    rows = []
    for text in corpus.windows(corpus.in_language("hi"), count, CHARACTERS, rng):
        found = re.finditer("|".join(composed), text)
        row = _changed_row(text, [Change(*match.span(), composed[match[0]]) for match in found])
        rows.append(Row(row.student, row.teacher, oracle.swapped(row.same)))
    return rows


def rows_of_source(count: int, pattern: str, new: str) -> list[Row]:
    """The teacher reads source code, the student the same after `re.sub`."""
    rng = random.Random(pattern)  # noqa: S311
    texts = corpus.windows(corpus.long_texts()["source"], count, CHARACTERS, rng)
    return [_changed_row(text, oracle.substitutions(text, re.compile(pattern), new)) for text in texts]


def rows_with_thoughts(count: int, *, teacher_thinks: bool) -> list[Row]:
    """An answer of real text, and before it, on one side only, 200 to 600 characters of thought."""
    rng = random.Random(3)  # noqa: S311
    rows = []
    answers, thoughts = corpus.passages(count, CHARACTERS, rng), corpus.passages(count, 600, rng)
    for (_, answer), (_, thought) in zip(answers, thoughts, strict=True):
        block = f"<think>\n{thought[: rng.randint(200, 600)]}\n</think>\n\n"
        row = _changed_row(answer, [Change(0, 0, block)])
        rows.append(Row(row.student, row.teacher, oracle.swapped(row.same)) if teacher_thinks else row)
    return rows


def split_ids(side: Tokenizer, rows: Ids) -> Ids:
    """A fifth of the ids, drawn, each as two other ids of the vocabulary with the same bytes."""
    ids_of: dict[bytes, int] = {}
    for token_id, token in enumerate(side.tokens):
        if token:
            ids_of.setdefault(token, token_id)
    rng = np.random.default_rng(4)
    return [_split_row(side.tokens, ids_of, row, rng) for row in rows]


def _split_row(
    tokens: Sequence[bytes], ids_of: Mapping[bytes, int], row: npt.NDArray[np.int32], rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    chosen = rng.random(len(row)) < SPLIT_SHARE
    found: list[int] = []
    for token_id, splits in zip(row.tolist(), chosen.tolist(), strict=True):
        ways = ways_to_split(tokens[token_id], ids_of) if splits else []
        found.extend(ways[int(rng.integers(len(ways)))] if ways else (token_id,))
    return np.array(found, dtype=np.int32)


def ways_to_split(token: bytes, ids_of: Mapping[bytes, int]) -> list[tuple[int, int]]:
    """All pairs of ids whose bytes joined are those of the token."""
    halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    return [(ids_of[left], ids_of[right]) for left, right in halves if left in ids_of and right in ids_of]


# ---- The parts -------------------------------------------------------------------------------------------


def parts(rows: int) -> Iterator[Part]:
    """All that is measured; `rows` of edited text, a tenth as many of the rest."""
    few = max(1, rows // 10)
    yield Part("one edit", rows_with_edits(rows, 1, seed=1), TOKENIZER_PAIRS, 0.999)
    yield Part("five edits", rows_with_edits(rows, 5, seed=5), TOKENIZER_PAIRS, 0.99)
    for name, language in LANGUAGES_WITH_MARKS.items():
        nfd = rows_in_nfd(language, few)
        _refuse_unless_normalised(nfd)
        yield Part(f"NFD and NFC, {name}", nfd, NFC_PAIRS, 0.95)
    nukta = rows_with_composed_nukta(few)
    _refuse_unless_normalised(nukta)
    yield Part("composed nukta and NFC, Hindi", nukta, NFC_PAIRS, 0.95)
    collapsed = rows_of_source(few, r"\s+", " ")
    yield Part("white space collapsed to one space", collapsed, TOKENIZER_PAIRS, 0.95)
    dropped = rows_of_source(few, r"(?m)^[ \t]+", "")
    yield Part("indentation dropped", dropped, TOKENIZER_PAIRS, 0.95)
    for side in ("teacher", "student"):
        thoughts = rows_with_thoughts(few, teacher_thinks=side == "teacher")
        yield Part(f"a <think> block, {side} only", thoughts, TOKENIZER_PAIRS, None)
    rng = random.Random(6)  # noqa: S311
    same = [same_row(text) for _, text in corpus.passages(few, CHARACTERS, rng)]
    yield Part("20 % of the student's ids split", same, TOKENIZER_PAIRS, 1.0, split_ids)


def _refuse_unless_normalised(rows: Sequence[Row]) -> None:
    """The students shall turn what the teacher reads into what these rows say of them."""
    for name in {student for _, student in NFC_PAIRS}:
        side = corpus.tokenizer(name)
        read = zip(side.rows([row.teacher for row in rows]), rows, strict=True)
        if any(side.text_of(ids) != row.student.encode() for ids, row in read):
            raise RuntimeError(f"{name} does not turn NFD into NFC")


def measure_pair(part: Part, teacher: str, student: str, examples: int) -> dict[str, Any]:
    """One pair of tokenizers on the rows of a part."""
    batch = batch_of(corpus.tokenizer(teacher), corpus.tokenizer(student), part.rows, part.respell)
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


def measure(rows: int, examples: int) -> dict[str, Any]:
    """All that is measured, ready for JSON; prints what each part gave as soon as it is done."""
    started = time.monotonic()
    results: dict[str, Any] = {"machine": machine("numpy", "tokenizers", "sentencepiece"), "parts": []}
    for part in parts(rows):
        measured = [measure_pair(part, *names, examples) for names in part.pairs]
        results["parts"].append(_summed(part, measured))
        print(_line(results["parts"][-1]), f"({time.monotonic() - started:.0f} s)", flush=True)
        for name in {name for names in part.pairs for name in names}:
            corpus.tokenizer(name).forget()
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
    exist, hit = (sum(pair[name] for pair in measured) for name in ("exist", "hit"))
    found = share(hit, exist)
    false = sum(pair["dskd"]["false"] for pair in measured)
    met = not false and exist > 0 and (part.target is None or found >= part.target)
    return {
        "name": part.name,
        "rows": len(part.rows),
        "exist": exist,
        "found": found,
        "target": part.target,
        "false": false,
        "met": met,
        "pairs": list(measured),
    }


def failures(results: Mapping[str, Any]) -> list[str]:
    """The parts whose target was missed."""
    parts = [_line(part) for part in results["parts"] if not part["met"]]
    return [*parts, *([] if results["reference"]["met"] else [_reference_line(results["reference"])])]


def _line(part: Mapping[str, Any]) -> str:
    lowest = min(pair["dskd"]["recall"] for pair in part["pairs"])
    target = "no target" if part["target"] is None else f"target {part['target']}"
    return (
        f"{part['name']}: {part['found']:.5f} of {part['exist']:,} pairs found (lowest {lowest:.4f}; "
        f"{target}), {part['false']} false: {'met' if part['met'] else 'MISSED'}"
    )


# ---- Tables ----------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    head = ["difference", "target", "rows", "pairs that exist", "found", "false", "", "M tokens/s"]
    head_of_pairs = [
        *("teacher", "student", "rows", "exist", "found", "elsewhere", "coverage", "ratio"),
        *("published: found", "elsewhere", "ratio"),
    ]
    parts = ["All tokenizer pairs together:", table(head, map(_part_cells, results["parts"]))]
    for part in results["parts"]:
        parts += [
            f"{part['name'][:1].upper()}{part['name'][1:]}:",
            table(head_of_pairs, map(_pair_cells, part["pairs"])),
        ]
    compared, on = _reference_line(results["reference"]), said_of(results["machine"])
    return "\n\n".join(
        [
            *parts,
            f"{compared[0].upper()}{compared[1:]}.",
            f"{results['seconds']} s; {on}.",
        ]
    )


def _part_cells(part: Mapping[str, Any]) -> list[str]:
    target = "" if part["target"] is None else f"{part['target']}"
    found = f"{part['found']:.5f}"
    verdict = "met" if part["met"] else "missed"
    speeds = [pair["dskd"]["tokens_a_second"] for pair in part["pairs"]]
    return [
        part["name"],
        target,
        f"{part['rows']:,}",
        f"{part['exist']:,}",
        found,
        str(part["false"]),
        verdict,
        f"{sum(speeds) / len(speeds) / 1e6:.2f}",
    ]


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    ours, theirs = pair["dskd"], pair["published"]
    return [
        *(
            pair["teacher"],
            pair["student"],
            f"{pair['rows']:,}",
            f"{pair['exist']:,}",
            f"{ours['recall']:.5f}",
        ),
        *(f"{ours['elsewhere']:,}", f"{ours['teacher_coverage']:.3f} and {ours['student_coverage']:.3f}"),
        *(
            f"{ours['ratio']:.3f}",
            f"{theirs['recall']:.5f}",
            f"{theirs['elsewhere']:,}",
            f"{theirs['ratio']:.3f}",
        ),
    ]


# ---- The command line ------------------------------------------------------------------------------------


REPORT = Report("differences", "What is found where the two texts differ.", tables, "proof.md")


def main() -> None:
    """Measures, or reads what was measured, prints the tables; exits with 1 where a target is missed."""
    parser = REPORT.parser()
    parser.add_argument(
        "--rows", type=positive, default=1000, help="rows of edited text, of the rest a tenth (1000)"
    )
    parser.add_argument("--examples", type=int, default=0, help="rows to show of which most was missed (0)")
    options = parser.parse_args()
    results = REPORT.run(options, lambda: measure(options.rows, options.examples))
    if failed := failures(results):
        sys.exit("\n".join(["Missed:", *failed]))


if __name__ == "__main__":
    main()
