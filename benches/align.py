"""Tokens per second of `dskd.Aligner.align` beside the plain NumPy way and its peers, on the same real rows.

    python benches/align.py            # measures, prints, writes results/align.json and README.md's tables
    python benches/align.py --table    # the same tables, from the results that are there
    python benches/align.py --quick    # two rows, one round: whether it works, not how fast

All contestants take turns, round after round, in one process and one thread, so that what else the machine
does falls on all of them alike. A ratio is the median over the rounds of the peer's time over dskd's in the
same round. The clock is the processor time of the process: on a busy machine the wall clock also counts the
waits of whoever works longest at a stretch. It counts the work of all threads, and none need be told not to
start any: dskd is asked for one, the NumPy calls and spacy-alignments have no threads, and tokenizers work
before the clock runs.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import itertools
import math
import os
import re
import statistics
import sys
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import spacy_alignments
import tokenizers

import dskd
from dskd import Aligner, Ragged, Vocabulary
from dskd.reference import published_eta

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import assets
from report import Report, machine, positive, said_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

PACKAGES = ("numpy", "tokenizers", "transformers", "sentencepiece", "spacy-alignments")
TOKENIZER_PAIRS = (("gpt2", "qwen2"), ("mistral-v3", "qwen2"), ("qwen2", "deepseek-v3"))
TOKENS_A_ROW = 1024
SMALL_TOKENS = 16
SPACY_ROWS = 4
"""It takes up to 0.2 s a row; dskd is timed on these rows as well."""
SLOT_SECONDS = 0.01
"""About how long a contestant works in each round; slow ones make one call."""
TARGETS = {
    "published_eta_with_conversion": (120, 150),
    "published_eta": (45, 50),
    "spacy_alignments": (100, 130),
    "numpy_searchsorted": (5, 7),
}
"""How many times as fast as each peer dskd is to be on source, with the worst pair: asked and aimed at."""
SMALL_TARGET = 5
"""Microseconds that a call on one pair of short rows may take."""

CONTAINER_PAIR = ("qwen2", "deepseek-v3")
THREADED_TIMES = 16
"""How many times as many rows two threads are given, so that both have work for more than a moment."""
THREADED_CALLS = 9
"""How many calls follow each other with as many threads."""
CONTAINER_TARGETS = (
    (
        "times np.asarray of lists of lists, to read and align them, at most",
        1.0,
        "list of lists",
        "of_asarray",
    ),
    ("times Ragged, to align lists of arrays, at most", 1.4, "list of arrays", "of_ragged"),
)
"""What is asked of a container, of its ratio."""
THREADS_TARGET = 1.5
"""How many times as fast two threads are to be as one, by the wall clock, where rows are arrays in a list."""

Positions = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Teacher and student tokens of all pairs, counted through the whole batch."""


# ---- Rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chat:
    """How a family writes a conversation: lists of special tokens and text, `{}` for what is said.

    Attributes:
        start: before the first turn.
        prompt: what the user says.
        response: before what the assistant says.
        end: the special token that ends it, which is trained on.
    """

    start: tuple[str, ...]
    prompt: tuple[str, ...]
    response: tuple[str, ...]
    end: str


CHATS = {
    "gpt2": Chat((), ("User: {}\n\n",), ("Assistant:",), "<|endoftext|>"),
    "qwen2": Chat(
        (), ("<|im_start|>", "user\n{}", "<|im_end|>", "\n"), ("<|im_start|>", "assistant\n"), "<|im_end|>"
    ),
    "mistral-v3": Chat(("<s>",), ("[INST]", "{}"), ("[/INST]",), "</s>"),
    "deepseek-v3": Chat(
        ("<｜begin▁of▁sentence｜>",),
        ("<｜User｜>", "{}"),
        ("<｜Assistant｜>",),
        "<｜end▁of▁sentence｜>",
    ),
}


@dataclass(frozen=True, slots=True)
class Side:
    """A tokenizer and the tables that contestants are given, made before the clock runs.

    Attributes:
        vocabulary: what dskd knows of it.
        encode: text -> ids, without special tokens.
        spell: ids -> spellings, the way the published code asks for them.
        lengths: bytes of each id, in the smallest type that holds them; the tables then fit the cache.
        pieces: the text of each id, U+FFFD where its bytes are no whole characters.
        chat: how the family writes a conversation.
    """

    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    spell: Callable[[list[int]], list[str]]
    lengths: npt.NDArray[Any]
    pieces: list[str]
    chat: Chat


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """Teacher, student, and their aligner."""

    teacher: Side
    student: Side
    aligner: Aligner


@dataclass(frozen=True, slots=True)
class Batch:
    """The same rows of text in ids of both sides, int64, and what is selected of them; None is all."""

    teacher: Ragged
    student: Ragged
    teacher_mask: Ragged | None = None
    student_mask: Ragged | None = None

    @property
    def tokens(self) -> int:
        """Teacher plus student tokens, those that are not selected too: an aligner has to pass them."""
        return len(self.teacher.values) + len(self.student.values)

    def repeated(self, times: int) -> Batch:
        """The rows so many times, without masks."""
        return Batch(_repeated(self.teacher, times), _repeated(self.student, times))

    def sample(self, rows: int) -> Batch:
        """About so many rows, evenly spread, or all."""
        step = max(1, len(self.teacher) // rows)
        masks = (mask and _every(mask, step) for mask in (self.teacher_mask, self.student_mask))
        return Batch(_every(self.teacher, step), _every(self.student, step), *masks)


def _repeated(rows: Ragged, times: int) -> Ragged:
    return Ragged.from_lengths(np.tile(rows.values, times), np.tile(rows.lengths(), times).tolist())


def _every(ragged: Ragged, step: int) -> Ragged:
    rows = _rows(ragged)[::step]
    return Ragged.from_lengths(np.concatenate(rows), [len(row) for row in rows])


@functools.cache
def side(name: str) -> Side:
    """The tokenizer of this name with its tables."""
    folder = assets.tokenizer(name)
    if (folder / "tokenizer.json").exists():
        return _side_of_tokenizer(folder / "tokenizer.json", CHATS[name])
    return _side_of_sentencepiece(folder / "tokenizer.model", CHATS[name])


def _side_of_tokenizer(file: Path, chat: Chat) -> Side:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    spell = _transformers().PreTrainedTokenizerFast(tokenizer_file=str(file)).convert_ids_to_tokens

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    vocabulary = Vocabulary.from_tokenizer(tokenizer, roles={chat.end: {"eos"}})
    return _side(vocabulary, encode, spell, chat)


def _transformers() -> Any:
    """The module, told at its import not to say that PyTorch is missing."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    return importlib.import_module("transformers")


def _side_of_sentencepiece(file: Path, chat: Chat) -> Side:
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(file))
    vocabulary = Vocabulary.from_tokenizer(processor, roles={chat.end: {"eos"}})
    return _side(vocabulary, processor.encode, processor.id_to_piece, chat)


def _side(
    vocabulary: Vocabulary,
    encode: Callable[[str], list[int]],
    spell: Callable[[list[int]], list[str]],
    chat: Chat,
) -> Side:
    """The end of a response has the length 1, by which the NumPy ways find that both sides end there."""
    tokens = [vocabulary.token_bytes(token_id) or b"" for token_id in range(len(vocabulary))]
    longest = max(len(token) for token in tokens)
    lengths = np.array([len(token) for token in tokens], dtype=np.min_scalar_type(longest))
    lengths[_literals(vocabulary)[chat.end]] = 1
    pieces = [token.decode(errors="replace") for token in tokens]
    return Side(vocabulary, encode, spell, lengths, pieces, chat)


@functools.cache
def tokenizer_pair(teacher: str, student: str) -> TokenizerPair:
    """Both sides and their aligner."""
    aligner = Aligner(side(teacher).vocabulary, side(student).vocabulary)
    return TokenizerPair(side(teacher), side(student), aligner)


@functools.cache
def texts() -> Mapping[str, str]:
    """Long real texts by name, in NFC: Qwen's tokenizer makes it so, and the sides shall read the same."""
    wiki = (line for line in assets.prose("wiki").split("\n") if not line.startswith(("<doc", "</doc")))
    found = {
        "source": "\n\n\n".join(assets.source_rows(600)),
        "prose": "\n".join(wiki),
        "chinese": "\n".join([*_chinese(assets.prose("multilingual")), assets.translation("zh_Hans")]),
    }
    return {name: unicodedata.normalize("NFC", text) for name, text in found.items()}


def _chinese(text: str) -> Iterable[str]:
    """The lines that are Chinese for the most part; kana and hangul are not."""
    lines = text.split("\n")
    return (line for line in lines if len(HAN.findall(line)) > len(line) / 2 and not OTHERS.search(line))


HAN, OTHERS = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff\uac00-\ud7af]")
CHAT = "chat"
TEXTS = ("source", "prose", "chinese", CHAT)


def batch_of(text: str, pair: TokenizerPair, rows: int, tokens: int) -> Batch:
    """Rows of the text of about so many teacher tokens each; a text that is too short is repeated."""
    if text == CHAT:
        return _chat_batch(pair, rows, tokens)
    ids = pair.teacher.encode(texts()[text][: 8 * rows * tokens])
    pieces = [_text_of(row, pair.teacher) for row in np.resize(ids, (rows, tokens)).tolist()]
    return Batch(_encoded(pieces, pair.teacher), _encoded(pieces, pair.student))


def _chat_batch(pair: TokenizerPair, rows: int, tokens: int) -> Batch:
    """Conversations of about so many teacher tokens each; responses and their ends are selected."""
    turns = itertools.cycle(_turns())
    conversations = [_conversation(turns, pair.teacher, tokens) for _ in range(rows)]
    teacher, teacher_mask = _chats(conversations, pair.teacher)
    student, student_mask = _chats(conversations, pair.student)
    return Batch(teacher, student, teacher_mask, student_mask)


Turn = tuple[str, str]
"""What the user says and what the assistant says."""


@functools.cache
def _turns() -> list[Turn]:
    """Questions and answers of real instruction data."""
    rows = assets.prompt_rows("train", 2_000)
    normal = functools.partial(unicodedata.normalize, "NFC")
    return [(normal(row.prompt), normal(row.completion.strip())) for row in rows]


def _conversation(turns: Iterable[Turn], side: Side, tokens: int) -> list[Turn]:
    taken, length = [], 0
    for turn in turns:
        taken.append(turn)
        length += len(_chat_turn(turn, side)[0])
        if length >= tokens:
            break
    return taken


def _chats(conversations: Iterable[list[Turn]], side: Side) -> tuple[Ragged, Ragged]:
    """Ids and mask of each conversation."""
    ids, masks = [], []
    for conversation in conversations:
        start = _chat_ids(side.chat.start, "", side)
        turns = [_chat_turn(turn, side) for turn in conversation]
        ids.append([*start, *itertools.chain.from_iterable(turn[0] for turn in turns)])
        masks.append([*[False] * len(start), *itertools.chain.from_iterable(turn[1] for turn in turns)])
    return _ragged(ids, np.int64), _ragged(masks, np.bool_)


def _chat_turn(turn: Turn, side: Side) -> tuple[list[int], list[bool]]:
    before = _chat_ids(side.chat.prompt, turn[0], side) + _chat_ids(side.chat.response, "", side)
    said = _chat_ids(("{}", side.chat.end), turn[1], side)
    return before + said, [False] * len(before) + [True] * len(said)


def _chat_ids(parts: Iterable[str], said: str, side: Side) -> list[int]:
    literals = _literals(side.vocabulary)
    each = ([literals[part]] if part in literals else side.encode(part.format(said)) for part in parts)
    return list(itertools.chain.from_iterable(each))


@functools.cache
def _literals(vocabulary: Vocabulary) -> Mapping[str, int]:
    """The id of each special token by its literal."""
    return {role: token_id for token_id, roles in vocabulary.roles.items() for role in roles}


def _text_of(ids: Iterable[int], side: Side) -> str:
    """The whole characters of these tokens."""
    token_bytes = (side.vocabulary.token_bytes(token_id) or b"" for token_id in ids)
    return b"".join(token_bytes).decode(errors="ignore")


def _encoded(pieces: Iterable[str], side: Side) -> Ragged:
    return _ragged([side.encode(piece) for piece in pieces], np.int64)


def _ragged(rows: Sequence[Sequence[int]], dtype: type[np.generic]) -> Ragged:
    values = np.fromiter(itertools.chain.from_iterable(rows), dtype=dtype)
    return Ragged.from_lengths(values, [len(row) for row in rows])


# ---- Contestants -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to align a batch: `run` is timed, `pairs` says what it finds."""

    name: str
    batch: Batch
    run: Callable[[], object]
    pairs: Callable[[], Positions]


def with_dskd(pair: TokenizerPair, batch: Batch) -> Contestant:
    """`Aligner.align` on ids held in numpy, content checked, and its pairs read."""

    def run() -> object:
        return pair_arrays(_align(pair, batch))

    return Contestant("dskd", batch, run, lambda: _pairs_of_alignment(_align(pair, batch), batch))


def with_dskd_everything(pair: TokenizerPair, batch: Batch) -> Contestant:
    """The same, and chunks, differences and counts are read as well."""

    def run() -> object:
        return everything(_align(pair, batch))

    return Contestant("dskd_everything", batch, run, lambda: _pairs_of_alignment(_align(pair, batch), batch))


def with_dskd_on_arrays(pair: TokenizerPair, batch: Batch) -> Contestant:
    """`with_dskd` on two plain 1-D arrays, for a batch of one row."""

    def align() -> dskd.Alignment:
        return pair.aligner.align(batch.teacher.values, batch.student.values, num_threads=1)

    def run() -> object:
        return pair_arrays(align())

    return Contestant("dskd", batch, run, lambda: _pairs_of_alignment(align(), batch))


def _align(pair: TokenizerPair, batch: Batch) -> dskd.Alignment:
    return pair.aligner.align(
        batch.teacher,
        batch.student,
        teacher_mask=batch.teacher_mask,
        student_mask=batch.student_mask,
        num_threads=1,
    )


def pair_arrays(alignment: dskd.Alignment) -> tuple[npt.NDArray[Any], ...]:
    """What the NumPy ways give too, and the kind of each pair: an array may be made when it is first read."""
    pairs = alignment.pairs
    return pairs.teacher, pairs.student, pairs.kind


def everything(alignment: dskd.Alignment) -> list[npt.NDArray[Any]]:
    """All arrays of an alignment."""
    return [
        getattr(getattr(alignment, part), name) for part, names in ARRAYS.items() for name in names.split()
    ]


_ENDS = "teacher_start teacher_end student_start student_end offsets"
ARRAYS = {
    "pairs": "teacher student kind offsets",
    "chunks": f"{_ENDS} encloses_zero_width",
    "differences": _ENDS,
    "counts": " ".join(item.name for item in dataclasses.fields(dskd.Counts)),
}
"""The arrays of an alignment, by its parts."""


def with_numpy_searchsorted(pair: TokenizerPair, batch: Batch) -> Contestant:
    """Token ends by cumulative byte lengths, the fewer ends searched among the more.

    Tokens with the same end and the same length have both neighbouring boundaries in common: they are a
    pair. The whole batch at once; it relies on rows that have as many bytes on both sides and looks at no
    content. Where a part is selected, that is all it sees: the lengths of the selected tokens.

    Tried, in millions of tokens a second on source (deepseek-v3 to mistral-v1, gpt2 to qwen2): this 73 and
    92; only the search row by row 83 and 87, but slower on the other texts; always the teacher's ends among
    the student's 74 and 55, with int64 for int32 71 and 55; `np.intersect1d` of ends and lengths packed into
    one number 49 and 57; comparing neighbouring boundaries instead of lengths 56 and 45, and that row by row
    31 and 20.
    """

    def run() -> Positions:
        teacher = _lengths_and_ends(pair.teacher, batch.teacher, batch.teacher_mask, np.int32)
        student = _lengths_and_ends(pair.student, batch.student, batch.student_mask, np.int32)
        if len(teacher[1]) <= len(student[1]):
            return _in_batch(_search(*teacher, *student), batch)
        return _in_batch(_search(*student, *teacher)[::-1], batch)

    return Contestant("numpy_searchsorted", batch, run, run)


def with_numpy_scatter(pair: TokenizerPair, batch: Batch) -> Contestant:
    """The same pairs without a search: lengths are scattered to the byte positions where tokens end.

    The fastest NumPy form found. Relies on as much as `with_numpy_searchsorted`. Tried in the same run: this
    150 and 138; the student's token numbers scattered as well, and read where the lengths agree, 141 and 165,
    but mostly slower on the other texts; that with `put` and `take` 118 and 144.
    """

    def run() -> Positions:
        teacher_lengths, teacher_ends = _lengths_and_ends(
            pair.teacher, batch.teacher, batch.teacher_mask, np.int64
        )
        student_lengths, student_ends = _lengths_and_ends(
            pair.student, batch.student, batch.student_mask, np.int64
        )
        at_teacher = _scatter(student_lengths, student_ends)[teacher_ends] == teacher_lengths
        at_student = _scatter(teacher_lengths, teacher_ends)[student_ends] == student_lengths
        return _in_batch((at_teacher.nonzero()[0], at_student.nonzero()[0]), batch)

    return Contestant("numpy_scatter", batch, run, run)


def with_published_eta(pair: TokenizerPair, batch: Batch) -> Contestant:
    """The published walk over spellings that are there already; it deletes `▁` and `Ġ` itself.

    Where a part of the rows is selected it is given that part.
    """
    spelled = [
        (pair.teacher.spell(teacher.tolist()), pair.student.spell(student.tolist()))
        for teacher, student in _selected_rows(batch)
    ]

    def run() -> list[list[tuple[int, int]]]:
        return [published_eta(teacher, student) for teacher, student in spelled]

    return Contestant("published_eta", batch, run, lambda: _pairs_of_rows(run(), batch))


def with_published_eta_and_conversion(pair: TokenizerPair, batch: Batch) -> Contestant:
    """The published walk from ids: transformers' `convert_ids_to_tokens` or SentencePiece's `id_to_piece`."""
    rows = _selected_rows(batch)
    spell_teacher, spell_student = pair.teacher.spell, pair.student.spell

    def run() -> list[list[tuple[int, int]]]:
        return [
            published_eta(spell_teacher(teacher.tolist()), spell_student(student.tolist()))
            for teacher, student in rows
        ]

    return Contestant("published_eta_with_conversion", batch, run, lambda: _pairs_of_rows(run(), batch))


def with_spacy_alignments(pair: TokenizerPair, batch: Batch) -> Contestant:
    """`get_alignments` on the text of each token, there already, its leading space kept.

    A token whose bytes are no whole characters is given as U+FFFD. Two tokens that name each other and
    nothing else are its pairs.
    """
    batch = batch.sample(SPACY_ROWS)
    pieces = [
        (_pieces_of(pair.teacher, teacher), _pieces_of(pair.student, student))
        for teacher, student in _selected_rows(batch)
    ]

    def run() -> list[tuple[list[list[int]], list[list[int]]]]:
        return [spacy_alignments.get_alignments(teacher, student) for teacher, student in pieces]

    def pairs() -> Positions:
        return _pairs_of_rows([_mutual(*row) for row in run()], batch)

    return Contestant("spacy_alignments", batch, run, pairs)


PEERS = {
    "numpy_searchsorted": with_numpy_searchsorted,
    "numpy_scatter": with_numpy_scatter,
    "published_eta": with_published_eta,
    "published_eta_with_conversion": with_published_eta_and_conversion,
    "spacy_alignments": with_spacy_alignments,
}
TITLES = {
    "dskd": "dskd",
    "dskd_everything": "dskd, everything read",
    "numpy_searchsorted": "NumPy, searchsorted",
    "numpy_scatter": "NumPy, scatter",
    "published_eta": "published ETA, walk",
    "published_eta_with_conversion": "published ETA from ids",
    "spacy_alignments": "spacy-alignments",
}
EXACT_PEERS = ("numpy_searchsorted", "numpy_scatter")
"""Those that find every pair where both sides read the same text."""


def _lengths_and_ends(
    side: Side, rows: Ragged, mask: Ragged | None, dtype: type[np.signedinteger[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Byte length and end of each selected token in the text of the whole batch, without dummy prefixes."""
    lengths = side.lengths[rows.values]
    if side.vocabulary.dummy_prefix:
        lengths[rows.offsets[:-1] if mask is None else _segment_starts(mask.values)] -= 1
    if mask is not None:
        lengths = lengths[mask.values]
    return lengths, lengths.cumsum(dtype=dtype)


def _segment_starts(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where a selected token follows one that is not: no conversation begins with a response."""
    return (mask[1:] > mask[:-1]).nonzero()[0] + 1


def _in_batch(pairs: Positions, batch: Batch) -> Positions:
    """Numbers among the selected tokens become numbers among all."""
    if batch.teacher_mask is None or batch.student_mask is None:
        return pairs
    return (
        batch.teacher_mask.values.nonzero()[0][pairs[0]],
        batch.student_mask.values.nonzero()[0][pairs[1]],
    )


def _search(
    lengths: npt.NDArray[Any],
    ends: npt.NDArray[Any],
    other_lengths: npt.NDArray[Any],
    other_ends: npt.NDArray[Any],
) -> Positions:
    others = other_ends.searchsorted(ends)
    found = ((other_ends[others] == ends) & (other_lengths[others] == lengths)).nonzero()[0]
    return found, others[found]


def _scatter(lengths: npt.NDArray[Any], ends: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each byte position the length of the token that ends there, or 0.

    Backwards, since the last one written stays: a token that was only the dummy prefix has no width and
    ends where the row before it does. One that ends at 0 shall match nothing.
    """
    marks = np.zeros(int(ends[-1]) + 1, dtype=lengths.dtype)
    marks[ends[::-1]] = lengths[::-1]
    marks[0] = 1
    return marks


def _rows(ragged: Ragged) -> list[npt.NDArray[np.int64]]:
    return np.split(ragged.values, ragged.offsets[1:-1])


def _selected_rows(batch: Batch) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The selected ids of each row, teacher and student."""
    teacher = _selected(batch.teacher, batch.teacher_mask)
    return list(zip(_rows(teacher), _rows(_selected(batch.student, batch.student_mask)), strict=True))


def _selected(rows: Ragged, mask: Ragged | None) -> Ragged:
    if mask is None:
        return rows
    return Ragged.from_lengths(rows.values[mask.values], [int(row.sum()) for row in _rows(mask)])


def _pieces_of(side: Side, row: npt.NDArray[np.int64]) -> list[str]:
    return [side.pieces[token_id] for token_id in row.tolist()]


def _mutual(to_student: list[list[int]], to_teacher: list[list[int]]) -> list[tuple[int, int]]:
    """Tokens that name each other and nothing else."""
    single = ((teacher, found[0]) for teacher, found in enumerate(to_student) if len(found) == 1)
    return [(teacher, student) for teacher, student in single if to_teacher[student] == [teacher]]


def _pairs_of_alignment(alignment: dskd.Alignment, batch: Batch) -> Positions:
    row = np.repeat(np.arange(len(alignment)), np.diff(alignment.pairs.offsets))
    teacher = alignment.pairs.teacher + batch.teacher.offsets[row]
    student = alignment.pairs.student + batch.student.offsets[row]
    return teacher, student


def _pairs_of_rows(rows: Sequence[list[tuple[int, int]]], batch: Batch) -> Positions:
    found = [np.array(row, dtype=np.int64).reshape(-1, 2) for row in rows]
    offsets = (
        _selected(batch.teacher, batch.teacher_mask).offsets,
        _selected(batch.student, batch.student_mask).offsets,
    )
    teacher, student = (
        np.concatenate([row[:, index] + offset for row, offset in zip(found, offsets[index], strict=False)])
        for index in (0, 1)
    )
    return _in_batch((teacher, student), batch)


# ---- Containers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """The ids of one side as people hold them, and a mask where there is padding."""

    ids: Any
    mask: Any = None


def _padded(rows: Ragged, dtype: type[np.generic]) -> Held:
    """The rows padded on the right, as a tokenizer pads them, and which positions are none."""
    lengths = rows.lengths()
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = rows.values
    return Held(ids, mask.astype(dtype))


def _tensors(rows: Ragged) -> Held:
    torch = importlib.import_module("torch")
    return Held([torch.from_numpy(row) for row in _rows(rows)])


CONTAINERS: Mapping[str, Callable[[Ragged], Held]] = {
    "Ragged": Held,
    "2-D array, boolean mask": lambda rows: _padded(rows, np.bool_),
    "2-D array, mask of 0 and 1": lambda rows: _padded(rows, np.int64),
    "list of arrays": lambda rows: Held(_rows(rows)),
    "list of tensors": _tensors,
    "list of lists": lambda rows: Held([row.tolist() for row in _rows(rows)]),
}


def with_container(pair: TokenizerPair, batch: Batch, name: str, threads: int = 1) -> Contestant:
    """Dskd on the same rows in a container of this name."""
    teacher, student = (CONTAINERS[name](rows) for rows in (batch.teacher, batch.student))

    def align() -> dskd.Alignment:
        masks = {"teacher_mask": teacher.mask, "student_mask": student.mask}
        return pair.aligner.align(teacher.ids, student.ids, **masks, num_threads=threads)

    return Contestant(name, batch, lambda: pair_arrays(align()), lambda: _pairs_of_alignment(align(), batch))


def with_asarray(batch: Batch) -> Contestant:
    """What NumPy takes for the lists alone, which then are not aligned yet."""
    lists = [row.tolist() for rows in (batch.teacher, batch.student) for row in _rows(rows)]

    def run() -> object:
        return [np.asarray(row) for row in lists]

    return Contestant("asarray", batch, run, lambda: (np.empty(0, np.int64), np.empty(0, np.int64)))


def measure_containers(rows: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a call by container, and how many times as fast two threads are."""
    pair = tokenizer_pair(*CONTAINER_PAIR)
    batch = batch_of("source", pair, rows, TOKENS_A_ROW)
    contestants = [with_container(pair, batch, name) for name in CONTAINERS]
    _refuse_other_pairs(contestants)
    contestants.append(with_asarray(batch))
    each = rounds_of_seconds(contestants, rounds)
    seconds = {contestant.name: its for contestant, its in zip(contestants, each, strict=True)}
    threaded = batch.repeated(THREADED_TIMES)
    results = {
        name: {
            "milliseconds": round(statistics.median(its) * 1e3, 3),
            "of_ragged": round(statistics.median(its / seconds["Ragged"]), 3),
            "of_asarray": round(statistics.median(its / seconds["asarray"]), 3),
            "two_threads": _times_as_fast(pair, threaded, name, rounds) if name in CONTAINERS else None,
        }
        for name, its in seconds.items()
    }
    return {
        **_description(CONTAINER_PAIR, "source", batch),
        "threaded_rows": len(threaded.teacher),
        "results": results,
    }


def _refuse_other_pairs(contestants: Sequence[Contestant]) -> None:
    first, *others = contestants
    for other in others:
        if not all(map(np.array_equal, other.pairs(), first.pairs())):
            raise RuntimeError(f"{other.name} does not give the pairs that {first.name} gives")


def _times_as_fast(pair: TokenizerPair, batch: Batch, name: str, rounds: int) -> float:
    """Two threads against one by the wall clock: processor time does not tell what two do at once.

    Of calls that follow each other, as in a data pipeline, the middle one counts: the first wakes threads.
    """
    runs = [with_container(pair, batch, name, threads).run for threads in (1, 2)]
    ratios = []
    for _ in range(rounds):
        one, two = map(_wall_seconds, runs)
        ratios.append(one / two)
    return round(statistics.median(ratios), 3)


def _wall_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(THREADED_CALLS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# ---- Measuring -------------------------------------------------------------------------------------------


def rounds_of_seconds(contestants: Sequence[Contestant], rounds: int) -> list[npt.NDArray[np.float64]]:
    """Seconds a call of each contestant in each round; they take turns, without garbage collection."""
    calls = [_calls_in_a_slot(contestant) for contestant in contestants]
    gc.collect()
    gc.disable()
    try:
        turns = [
            [_seconds_a_call(contestant, count) for contestant, count in zip(contestants, calls, strict=True)]
            for _ in range(rounds)
        ]
    finally:
        gc.enable()
    return list(np.array(turns).T)


def _calls_in_a_slot(contestant: Contestant) -> int:
    contestant.run()
    return max(1, math.ceil(SLOT_SECONDS / _seconds_a_call(contestant, 1)))


def _seconds_a_call(contestant: Contestant, calls: int) -> float:
    run = contestant.run
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def measure_batch(names: tuple[str, str], text: str, rows: int, rounds: int) -> dict[str, Any]:
    """All contestants on the rows of one text between two tokenizers."""
    pair = tokenizer_pair(*names)
    batch = batch_of(text, pair, rows, TOKENS_A_ROW)
    _refuse_differences(pair, batch)
    peers = [build(pair, batch) for build in PEERS.values()]
    opponents = {len(peer.batch.teacher): with_dskd(pair, peer.batch) for peer in peers}
    contestants = [*opponents.values(), with_dskd_everything(pair, batch), *peers]
    seconds = rounds_of_seconds(contestants, rounds)
    ours = dict(zip(opponents, seconds, strict=False))
    results: dict[str, dict[str, Any]] = {
        "dskd": {"tokens_per_second": _speed(batch, ours[rows])},
        "dskd_everything": {"tokens_per_second": _speed(batch, seconds[len(opponents)])},
    }
    for peer, theirs in zip(peers, seconds[len(opponents) + 1 :], strict=True):
        count = len(peer.batch.teacher)
        results[peer.name] = _against(peer, theirs, opponents[count], ours[count])
    return {**_description(names, text, batch), "pairs": len(opponents[rows].pairs()[0]), "results": results}


def measure_small(names: tuple[str, str], rounds: int) -> dict[str, Any]:
    """Microseconds a call on one pair of short rows, given to dskd as plain arrays."""
    pair = tokenizer_pair(*names)
    batch = batch_of("prose", pair, 1, SMALL_TOKENS)
    contestants = [with_dskd_on_arrays(pair, batch), *(build(pair, batch) for build in PEERS.values())]
    seconds = rounds_of_seconds(contestants, rounds)
    microseconds = {
        contestant.name: round(statistics.median(its_seconds) * 1e6, 1)
        for contestant, its_seconds in zip(contestants, seconds, strict=True)
    }
    return {**_description(names, "prose", batch), "microseconds": microseconds}


def _refuse_differences(pair: TokenizerPair, batch: Batch) -> None:
    differences = _align(pair, batch).differences
    if len(differences):
        row = int(np.flatnonzero(np.diff(differences.offsets))[0])
        raise RuntimeError(f"row {row} does not read the same on both sides; there is no use in timing it")


def _description(names: tuple[str, str], text: str, batch: Batch) -> dict[str, Any]:
    return {
        "teacher": names[0],
        "student": names[1],
        "text": text,
        "rows": len(batch.teacher),
        "teacher_tokens": len(batch.teacher.values),
        "student_tokens": len(batch.student.values),
    }


def _speed(batch: Batch, seconds: npt.NDArray[np.float64]) -> int:
    return round(batch.tokens / float(np.median(seconds)))


def _against(
    peer: Contestant, theirs: npt.NDArray[np.float64], dskd: Contestant, ours: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """How a peer did, and how much faster dskd was on the same rows in the same rounds."""
    found, exist = (_numbered(contestant.pairs(), peer.batch) for contestant in (peer, dskd))
    common = len(np.intersect1d(found, exist, assume_unique=True))
    if peer.name in EXACT_PEERS and not common == len(found) == len(exist):
        raise RuntimeError(f"{peer.name} finds {len(found)} pairs, dskd {len(exist)}, both {common}")
    return {
        "ratio": round(statistics.median(theirs / ours), 3),
        "tokens_per_second": _speed(peer.batch, theirs),
        "rows": len(peer.batch.teacher),
        "recall": _share(common, len(exist)),
        "precision": _share(common, len(found)),
    }


def _share(part: int, whole: int) -> float:
    """Rounded down, so that 1 means all of them; 0 of none."""
    return part * 10_000 // max(whole, 1) / 10_000


def _numbered(pairs: Positions, batch: Batch) -> npt.NDArray[np.int64]:
    """A number for each pair."""
    return pairs[0] * len(batch.student.values) + pairs[1]


def measure(rows: int, rounds: int) -> dict[str, Any]:
    """All that is measured, ready for JSON; the extremes of the ratios first."""
    load = os.getloadavg()[0]
    batches = []
    for names, text in itertools.product(TOKENIZER_PAIRS, TEXTS):
        print(f"{names[0]} to {names[1]}, {text}", file=sys.stderr)
        batches.append(measure_batch(names, text, rows, rounds))
    small = [measure_small(names, rounds) for names in TOKENIZER_PAIRS]
    print("containers", file=sys.stderr)
    containers = measure_containers(rows, rounds)
    loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
    return {
        "ratios": {name: _extremes(batches, name) for name in PEERS},
        "targets": [*_target_rows(batches), _small_target_row(small), *_container_target_rows(containers)],
        "machine": machine(*PACKAGES) | loads,
        "rounds": rounds,
        "batches": batches,
        "small": small,
        "containers": containers,
    }


def _extremes(batches: Iterable[Mapping[str, Any]], name: str) -> dict[str, float]:
    ratios = [batch["results"][name]["ratio"] for batch in batches]
    return {"lowest": min(ratios), "median": round(statistics.median(ratios), 3), "highest": max(ratios)}


def _target_rows(batches: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What was asked for on source, and what the worst pair of tokenizers reached."""
    on_source = [batch for batch in batches if batch["text"] == "source"]
    for name, (asked, aim) in TARGETS.items():
        worst = min(on_source, key=lambda batch: batch["results"][name]["ratio"])
        yield {
            "what": f"times as fast as {TITLES[name]}, at least",
            "asked": asked,
            "aim": aim,
            "reached": worst["results"][name]["ratio"],
            "pair": _names(worst),
        }


def _small_target_row(small: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    worst = max(small, key=lambda row: row["microseconds"]["dskd"])
    what = f"microseconds for one pair of about {SMALL_TOKENS} tokens, at most"
    reached = worst["microseconds"]["dskd"]
    return {"what": what, "asked": SMALL_TARGET, "aim": None, "reached": reached, "pair": _names(worst)}


def _container_target_rows(containers: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    pair, results = _names(containers), containers["results"]
    for what, asked, name, ratio in CONTAINER_TARGETS:
        yield {"what": what, "asked": asked, "aim": None, "reached": results[name][ratio], "pair": pair}
    rows = f"{containers['threaded_rows']:,} rows in lists of arrays"
    what = f"times as fast with two threads on {rows}, at least"
    reached = results["list of arrays"]["two_threads"]
    yield {"what": what, "asked": THREADS_TARGET, "aim": None, "reached": reached, "pair": pair}


# ---- Tables ----------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown, ratios first."""
    rows, small, peers = results["batches"], results["small"], [TITLES[name] for name in PEERS]
    return "\n\n".join(
        [
            "Asked for on source, aimed at, and reached by the worst pair of tokenizers:",
            table(["what", "its pair", "asked", "aim", "reached"], map(_target_cells, results["targets"])),
            "How many times as fast as each peer dskd is, on the same rows:",
            table(["teacher to student", "text", *peers], map(_ratio_cells, rows)),
            "Million tokens a second, teacher plus student:",
            table(["teacher to student", "text", *TITLES.values()], map(_speed_cells, rows)),
            "Pairs found of the pairs that exist and, in brackets, true pairs of those found:",
            table(["teacher to student", "text", "pairs", *peers], map(_pair_cells, rows)),
            f"One pair of about {SMALL_TOKENS} tokens, microseconds a call:",
            table(["teacher to student", "tokens", TITLES["dskd"], *peers], map(_small_cells, small)),
            *(_container_tables(results["containers"]) if "containers" in results else []),
            _machine_line(results),
        ]
    )


def _names(row: Mapping[str, Any]) -> str:
    return f"{row['teacher']} to {row['student']}"


def _target_cells(row: Mapping[str, Any]) -> list[str]:
    aim = "" if row["aim"] is None else f"{row['aim']}"
    return [row["what"], row["pair"], f"{row['asked']}", aim, f"{row['reached']:.3g}"]


def _ratio_cells(row: Mapping[str, Any]) -> list[str]:
    return [_names(row), row["text"], *(f"{row['results'][name]['ratio']:.3g}" for name in PEERS)]


def _speed_cells(row: Mapping[str, Any]) -> list[str]:
    speeds = (row["results"][name]["tokens_per_second"] / 1e6 for name in TITLES)
    return [_names(row), row["text"], *(f"{speed:.3g}" for speed in speeds)]


def _pair_cells(row: Mapping[str, Any]) -> list[str]:
    found = (row["results"][name] for name in PEERS)
    shares = (f"{peer['recall']:.1%} ({peer['precision']:.1%})" for peer in found)
    return [_names(row), row["text"], f"{row['pairs']:,}", *shares]


SMALL = ("dskd", *PEERS)
"""The contestants on one pair of short rows."""


def _small_cells(row: Mapping[str, Any]) -> list[str]:
    tokens = f"{row['teacher_tokens']} and {row['student_tokens']}"
    return [_names(row), tokens, *(f"{row['microseconds'][name]:,.1f}" for name in SMALL)]


def _container_tables(containers: Mapping[str, Any]) -> Iterable[str]:
    """By how the ids are held; what was measured before it was asked has none."""
    tokens = f"{containers['teacher_tokens']:,} and {containers['student_tokens']:,}"
    yield (
        f"By container: {containers['rows']} rows of source, {_names(containers)}, {tokens} tokens; one "
        f"thread, and two against one by the wall clock on {containers['threaded_rows']:,} rows:"
    )
    head = ["ids are held in", "milliseconds", "times Ragged", "times np.asarray", "two threads"]
    yield table(head, itertools.starmap(_container_cells, containers["results"].items()), names=1)


def _container_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    what = "list of lists, np.asarray of each alone" if name == "asarray" else name
    threads = "" if row["two_threads"] is None else f"{row['two_threads']:.3g}"
    numbers = (row["milliseconds"], row["of_ragged"], row["of_asarray"])
    return [what, *(f"{number:.3g}" for number in numbers), threads]


def _machine_line(results: Mapping[str, Any]) -> str:
    rows = max(row["rows"] for row in results["batches"])
    return f"{said_of(results['machine'])}; {rows} rows, medians of {results['rounds']} rounds."


# ---- The command line ------------------------------------------------------------------------------------


REPORT = Report("align", "Tokens per second of dskd.Aligner.align beside its peers.", tables)


def main() -> None:
    """Measures, or reads what was measured, and prints the tables."""
    parser = REPORT.parser(quick="2 rows and 1 round, unless told otherwise")
    parser.add_argument("--rows", type=positive, help="rows of a batch (64)")
    parser.add_argument("--rounds", type=positive, help="how often each contestant takes its turn (15)")
    options = parser.parse_args()
    rows, rounds = (2, 1) if options.quick else (64, 15)
    REPORT.run(options, lambda: measure(options.rows or rows, options.rounds or rounds))


if __name__ == "__main__":
    main()
