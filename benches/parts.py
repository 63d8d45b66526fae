"""The rows of which `make proof` asks what is found, part by part: what was done to a text, and who reads it.

Where the two texts of a row differ, what was changed is known, so that every pair that exists is known. Real
text with edits, in NFD, with other white space, behind a `<think>` block; ids that were split; and repetitive
text of all `kinds`, some of which the student's own tokenizer makes different.
"""

from __future__ import annotations

import random
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import assets
import corpus
import kinds
import normalisers
import oracle
from judge import Rewritten, Row, changed_row, same_row
from oracle import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from corpus import Tokenizer
    from judge import Rewrite
    from kinds import Version

CHARACTERS = 3000
LONGEST_EDIT = 200
SPLIT_SHARE = 0.2
LOST_SHARE = 0.1
LARGE = 1 / 3
"""Share of its bytes up to which a difference has targets."""
FOUND, WRONG = 0.99, 0.001
"""The targets of the kinds: least found at their place, most at wrong places."""
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
KIND_PAIRS = (("deepseek-v3", "mistral-v1"), ("llama3", "gemma4"), (corpus.BYTES, corpus.BYTES))
XLM_R_PAIRS = (("deepseek-v3", "xlm-r"), ("mistral-v1", "xlm-r"))
BERT_PAIRS = (("gpt2", "bert"), ("llama3", "minilm"))
LANGUAGES_WITH_MARKS = {"French": "fr", "Vietnamese": "vi", "Hindi": "hi"}


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of difference.

    Attributes:
        name: what is different.
        rows: what the sides read.
        pairs: teachers and students.
        target: the lowest share of the existing pairs that must be found; None where none is set.
        most_wrong: the highest share of the pairs found that may be at wrong places; None where none is set.
        rewrite: what replaces the student's ids, if anything.
        is_kind: whether it is of the kinds of repetitive text, whose targets hold for each tokenizer pair.
    """

    name: str
    rows: Sequence[Row]
    pairs: Sequence[tuple[str, str]]
    target: float | None
    most_wrong: float | None = None
    rewrite: Rewrite | None = None
    is_kind: bool = False


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
        row = changed_row(text, edited(text, edits, corpus.long_texts()[name], rng))
        swap = rng.random() < 0.5  # noqa: PLR2004 - either side
        rows.append(row.swapped() if swap else row)
    return rows


def rows_in_nfd(language: str, count: int) -> list[Row]:
    """The teacher reads NFD, the student what NFC makes of it."""
    rng = random.Random(language)  # noqa: S311
    texts = corpus.windows(corpus.in_language(language), count, CHARACTERS, rng)
    rows = (changed_row(text, oracle.decompositions(text)) for text in texts)
    return [row.swapped() for row in rows]


def rows_with_composed_nukta(count: int) -> list[Row]:
    """Hindi: the teacher reads letters with a nukta as one character each, which NFC takes apart.

    These eight are what Unicode excludes from composition; besides them NFD changes hardly anything in Hindi.
    """
    composed = {unicodedata.normalize("NFC", chr(code)): chr(code) for code in range(0x0958, 0x0960)}
    rng = random.Random("nukta")  # noqa: S311
    rows = []
    for text in corpus.windows(corpus.in_language("hi"), count, CHARACTERS, rng):
        found = re.finditer("|".join(composed), text)
        row = changed_row(text, [Change(*match.span(), composed[match[0]]) for match in found])
        rows.append(row.swapped())
    return rows


def rows_of_source(count: int, pattern: str, new: str) -> list[Row]:
    """The teacher reads source code, the student the same after `re.sub`."""
    rng = random.Random(pattern)  # noqa: S311
    texts = corpus.windows(corpus.long_texts()["source"], count, CHARACTERS, rng)
    return [changed_row(text, oracle.substitutions(text, re.compile(pattern), new)) for text in texts]


def rows_with_thoughts(count: int, *, teacher_thinks: bool) -> list[Row]:
    """An answer of real text, and before it, on one side only, 200 to 600 characters of thought."""
    rng = random.Random(3)  # noqa: S311
    rows = []
    answers, thoughts = corpus.passages(count, CHARACTERS, rng), corpus.passages(count, 600, rng)
    for (_, answer), (_, thought) in zip(answers, thoughts, strict=True):
        block = f"<think>\n{thought[: rng.randint(200, 600)]}\n</think>\n\n"
        row = changed_row(answer, [Change(0, 0, block)])
        rows.append(row.swapped() if teacher_thinks else row)
    return rows


def split_ids(side: Tokenizer, row: npt.NDArray[np.int32]) -> Rewritten:
    """A fifth of the ids, drawn, each as two other ids of the vocabulary with the same bytes."""
    rng = np.random.default_rng([4, len(row)])
    chosen = rng.random(len(row)) < SPLIT_SHARE
    found: list[int] = []
    for token_id, splits in zip(row.tolist(), chosen.tolist(), strict=True):
        ways = ways_to_split(side.tokens[token_id], side.ids_of) if splits else []
        found.extend(ways[int(rng.integers(len(ways)))] if ways else (token_id,))
    return Rewritten(np.array(found, dtype=np.int32), [(0, 0, len(side.text_of(row)))])


def ids_dropped(side: Tokenizer, row: npt.NDArray[np.int32]) -> Rewritten:
    """One id in ten, drawn, is not there; the first, which may hold a space that is no text, always is."""
    return _without(side, row, np.empty(0, dtype=np.int32))


def ids_unknown(side: Tokenizer, row: npt.NDArray[np.int32]) -> Rewritten:
    """In place of one id in ten, drawn, one whose bytes nobody knows."""
    opaque = next(index for index in range(len(side.tokens)) if side.vocabulary.token_bytes(index) is None)
    return _without(side, row, np.array([opaque], dtype=np.int32))


def _without(side: Tokenizer, row: npt.NDArray[np.int32], instead: npt.NDArray[np.int32]) -> Rewritten:
    gone = np.random.default_rng([7, len(row)]).random(len(row)) < LOST_SHARE
    gone[:1] = False
    ends = side.lengths[row].cumsum()
    same, parts, at = [], [], 0
    for token_id, end, lost in zip(row, ends.tolist(), gone.tolist(), strict=True):
        length = int(side.lengths[token_id])
        if not lost:
            same.append((end - length, at, length))
            at += length
        parts.append(instead if lost else np.array([token_id]))
    return Rewritten(np.concatenate(parts), oracle.merged(same))


def ways_to_split(token: bytes, ids_of: Mapping[bytes, int]) -> list[tuple[int, int]]:
    """All pairs of ids whose bytes joined are those of the token."""
    halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    return [(ids_of[left], ids_of[right]) for left, right in halves if left in ids_of and right in ids_of]


# ---- Repetitive text -------------------------------------------------------------------------------------


def rows_of_kind(name: str, count: int, make: Callable[[random.Random], Version]) -> list[Row]:
    """Rows of a kind; either side, drawn, reads the one version."""
    rows = []
    for index in range(count):
        rng = random.Random(f"{name} {index}")  # noqa: S311
        version = make(rng)
        row = changed_row(version.text, version.changes, values=version.values)
        rows.append(row.swapped() if rng.random() < 0.5 else row)  # noqa: PLR2004
    return rows


def changed_share(row: Row) -> float:
    """How much of the longer text is not in the other."""
    same = sum(length for _, _, length in row.same)
    return 1 - same / max(len(row.teacher.encode()), len(row.student.encode()), 1)


def makers() -> Mapping[str, Callable[[random.Random], Version]]:
    """All kinds of repetitive text."""
    source = assets.source_rows(600)
    of_values = {name: _laid(make) for name, make in kinds.VALUES.items()}
    of_code = {name: _of_source(make, source) for name, make in kinds.CODE.items()}
    return {**of_values, **kinds.CHARACTERS, **of_code}


def _laid(make: Callable[[random.Random], kinds.Written]) -> Callable[[random.Random], Version]:
    return lambda rng: kinds.laid(make(rng))


def _of_source(
    make: Callable[[Sequence[str], random.Random], Version], source: Sequence[str]
) -> Callable[[random.Random], Version]:
    return lambda rng: make(source, rng)


def normalised(
    words: Mapping[str, str], form: Callable[[str], str], normalise: Callable[[str], list[Change]]
) -> Callable[[random.Random], Version]:
    """Lists, logs, tables and the like with some words, as they are and as a tokenizer reads them."""

    def make(rng: random.Random) -> Version:
        text = form(kinds.with_words(kinds.any_text(rng), words)).strip()
        return Version(text, normalise(text))

    return make


# ---- The parts -------------------------------------------------------------------------------------------


def parts(rows: int) -> Iterator[Part]:
    """All that is measured; `rows` of edited text, a fifth as many of a kind, a tenth of the rest."""
    yield from parts_of_real_text(rows)
    yield from parts_of_kinds(max(2, rows // 5))


def parts_of_kinds(count: int) -> Iterator[Part]:
    """Repetitive text; rows of which more than a third differs are a part by themselves."""
    large: list[Row] = []
    for name, make in makers().items():
        made = rows_of_kind(name, count, make)
        large += [row for row in made if changed_share(row) > LARGE]
        yield _kind(name, [row for row in made if changed_share(row) <= LARGE], KIND_PAIRS)
    yield Part("more than a third changed", large, KIND_PAIRS, None, is_kind=True)
    same = [same_row(kinds.any_text(random.Random(index))) for index in range(count)]  # noqa: S311
    yield _kind("one id in ten dropped", same, KIND_PAIRS, ids_dropped)
    yield _kind("one id in ten unknown", same, KIND_PAIRS, ids_unknown)


def _kind(name: str, rows: list[Row], pairs: Sequence[tuple[str, str]], rewrite: Rewrite | None = None) -> Part:
    return Part(name, rows, pairs, FOUND, WRONG, rewrite, is_kind=True)


def parts_of_real_text(rows: int) -> Iterator[Part]:
    """Real text; `rows` of edited text, a tenth as many of the rest."""
    few = max(1, rows // 10)
    yield Part("one edit", rows_with_edits(rows, 1, seed=1), TOKENIZER_PAIRS, 0.9999)
    yield Part("five edits", rows_with_edits(rows, 5, seed=5), TOKENIZER_PAIRS, 0.999)
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
    yield Part("20 % of the student's ids split", same, TOKENIZER_PAIRS, 1.0, rewrite=split_ids)


def _refuse_unless_normalised(rows: Sequence[Row]) -> None:
    """The students shall turn what the teacher reads into what these rows say of them."""
    for name in {student for _, student in NFC_PAIRS}:
        side = corpus.tokenizer(name)
        read = zip(side.rows([row.teacher for row in rows]), rows, strict=True)
        if any(side.text_of(ids) != row.student.encode() for ids, row in read):
            raise RuntimeError(f"{name} does not turn NFD into NFC")


