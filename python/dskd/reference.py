"""The definitions, slow and obvious: what the compiled core must equal, and what the papers published.

Nothing here is fast and nothing else in the package uses it, apart from `published_eta` in reports.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, groupby, pairwise, product, takewhile, zip_longest
from typing import TYPE_CHECKING

from dskd.columns import PairKind
from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from dskd.vocabulary import Vocabulary

__all__ = ["Row", "align", "byte_level_alphabet", "overlaps", "published_eta", "spans", "token_bytes"]

Pair = tuple[int, int, PairKind]
Range = tuple[int, int, int, int]
"""First teacher token and one past the last, first student token and one past the last."""


@dataclass(slots=True)
class Row:
    """What aligning one row found; positions are columns of the row."""

    pairs: list[Pair] = field(default_factory=list)
    chunks: list[Range] = field(default_factory=list)
    encloses_zero_width: list[bool] = field(default_factory=list)
    differences: list[Range] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def align(
    teacher: Vocabulary,
    student: Vocabulary,
    teacher_ids: Sequence[int],
    student_ids: Sequence[int],
    teacher_mask: Sequence[bool] | None = None,
    student_mask: Sequence[bool] | None = None,
) -> Row:
    """Aligns one row by the definition: settle the one spaces, compute all spans, intersect them.

    The k-th segment of one side is aligned with the k-th of the other; what one side has more is a
    difference each. Where two texts differ, alignment resumes at the next place in what corresponds in them
    (`_correspondence`). Time and memory grow with the product of the two lengths; the core finds the same in
    texts of up to some 8,192 bytes a side, and in longer ones what it can in linear time.
    """
    row = Row()
    teacher_segments = _segments(teacher_ids, teacher_mask)
    student_segments = _segments(student_ids, student_mask)
    for index in range(max(len(teacher_segments), len(student_segments))):
        sides = (
            _side(teacher, teacher_ids, teacher_segments, index),
            _side(student, student_ids, student_segments, index),
        )
        if index < min(len(teacher_segments), len(student_segments)):
            _align_segment(*sides, row)
        elif sides[0].tokens or sides[1].tokens:
            row.differences.append((*sides[0].columns(0), *sides[1].columns(0)))
        for name, side in zip(("teacher", "student"), sides, strict=True):
            row.counts[f"{name}_tokens"] += sum(len(token.text) > 0 for token in side.tokens)
            row.counts[f"{name}_bytes"] += sum(len(token.text) for token in side.tokens)
            row.counts[f"{name}_opaque"] += sum(token.opaque for token in side.tokens)
    row.counts["segment_mismatch"] = int(len(teacher_segments) != len(student_segments))
    return row


@dataclass(slots=True)
class _Token:
    """One token of a segment; `text` loses its first byte where that is set aside as the one space."""

    token_id: int
    text: bytes
    opaque: bool
    special: bool
    roles: AbstractSet[str]
    before_prefix: bool
    """Whether a dummy prefix may stand behind it."""
    held_space: bool = False


@dataclass(slots=True)
class _Side:
    """One side of a segment, and the column of its first token."""

    tokens: list[_Token]
    column: int
    text: bytes = b""
    """The bytes of the tokens before the first opaque one; the rest below is about these tokens, too."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    zero_width: dict[int, list[int]] = field(default_factory=dict)
    """The tokens without text that stand at a place of the text."""
    next_text: dict[int, int] = field(default_factory=dict)
    """The token that begins its text at a place; at the end of it all, what follows the known tokens."""
    last_text: dict[int, int] = field(default_factory=dict)
    """The token that ends its text at a place."""

    def __post_init__(self) -> None:
        """Reads the tokens."""
        self.read()

    def read(self) -> None:
        """Works out where the text of each token lies."""
        opaque = [index for index, token in enumerate(self.tokens) if token.opaque]
        known = self.tokens[: opaque[0]] if opaque else self.tokens
        ends = list(accumulate((len(token.text) for token in known), initial=0))
        self.text = b"".join(token.text for token in known)
        self.spans = list(pairwise(ends))
        self.zero_width, self.next_text, self.last_text = {}, {len(self.text): len(known)}, {}
        for index, (start, end) in enumerate(self.spans):
            if start == end:
                self.zero_width.setdefault(start, []).append(index)
            else:
                self.next_text[start], self.last_text[end] = index, index

    def columns(self, start: int, end: int | None = None) -> tuple[int, int]:
        """The columns from this token to that one, or to the segment's end."""
        return self.column + start, self.column + (len(self.tokens) if end is None else end)

    def rest(self, start: int) -> _Side:
        """The side from this token on."""
        return _Side(self.tokens[start:], self.column + start)

    def copy(self) -> _Side:
        """The same, so that setting spaces aside leaves this one as it is."""
        return _Side([replace(token) for token in self.tokens], self.column)

    def last_place(self) -> int:
        """The first of the tokens without text with which the side ends."""
        text = [index for index, token in enumerate(self.tokens) if token.text or token.opaque]
        return text[-1] + 1 if text else 0

    def is_after_special(self, index: int) -> bool:
        """Whether a special is among the tokens without text just before this one."""
        before = takewhile(lambda token: not token.text, reversed(self.tokens[:index]))
        return any(token.special for token in before)

    def may_prefix_at(self, index: int) -> bool:
        """Whether the last token with text before this one is one that a dummy prefix may follow."""
        return next((token.before_prefix for token in reversed(self.tokens[:index]) if token.text), False)

    def spaces_from(self, index: int, *, through_specials: bool) -> int:
        """The length of the run of spaces with which the text opens at this token."""
        text = b""
        for token in self.tokens[index:]:
            if token.opaque or (token.special and not through_specials):
                break
            text += token.text
        return len(text) - len(text.lstrip(b" "))

    def set_space_aside(self, index: int) -> None:
        """Takes the first byte, a space, off this token; it counts nowhere."""
        self.tokens[index].text = self.tokens[index].text[1:]
        self.tokens[index].held_space = True
        self.read()

    def take_space_back(self, index: int) -> None:
        """Gives this token, behind which the texts do not agree after all, its space back."""
        if index < len(self.tokens) and self.tokens[index].held_space:
            self.tokens[index].text = b" " + self.tokens[index].text
            self.tokens[index].held_space = False


def _segments(ids: Sequence[int], mask: Sequence[bool] | None) -> list[tuple[int, int]]:
    """Maximal runs of selected columns; without a mask the whole row, even an empty one."""
    if mask is None:
        return [(0, len(ids))]
    runs = [
        (selected, [column for column, _ in run])
        for selected, run in groupby(enumerate(mask), lambda x: x[1])
    ]
    return [(columns[0], columns[-1] + 1) for selected, columns in runs if selected]


def _side(vocabulary: Vocabulary, ids: Sequence[int], segments: list[tuple[int, int]], index: int) -> _Side:
    """This segment of a row; behind the last one an empty segment that stands where the last one ends."""
    end = segments[-1][1] if segments else 0
    start, end = segments[index] if index < len(segments) else (end, end)
    return _Side([_token(vocabulary, token_id) for token_id in ids[start:end]], start)


def _token(vocabulary: Vocabulary, token_id: int) -> _Token:
    kind = vocabulary.kind(token_id)
    return _Token(
        token_id=token_id,
        text=vocabulary.token_bytes(token_id) or b"",
        opaque=kind == Kind.OPAQUE,
        special=kind == Kind.SPECIAL,
        roles=vocabulary.roles.get(token_id, frozenset()) - {"pad", "unk"},
        before_prefix=vocabulary.dummy_prefix and kind == Kind.USER_DEFINED,
    )


def _align_segment(teacher: _Side, student: _Side, row: Row) -> None:
    """Aligns what agrees, passes a difference, goes on behind it."""
    search: _Search | None = None
    while True:
        _settle_one_spaces(teacher, student)
        start = _intersect(teacher, student, row)
        if start == (len(teacher.tokens), len(student.tokens)):
            return
        teacher.take_space_back(start[0])
        student.take_space_back(start[1])
        unpaired = (_unpaired(teacher, start[0], 0, row), _unpaired(student, start[1], 1, row))
        rests = (teacher.rest(start[0]), student.rest(start[1]))
        search = search or _Search(*rests)
        ahead = search.next_place(*rests)
        if ahead is None:
            ahead = rests[0].last_place(), rests[1].last_place()
        # Where a text stands still, the specials without a partner stand behind the difference as well.
        places = zip(start, ahead, unpaired, strict=True)
        ends = [at + skipped if skipped else without for at, skipped, without in places]
        stops = tuple(max(both) for both in zip(start, ends, strict=True))
        if stops != start:
            row.differences.append(
                (*teacher.columns(start[0], stops[0]), *student.columns(start[1], stops[1]))
            )
        teacher, student = teacher.rest(ends[0]), student.rest(ends[1])


def _unpaired(side: _Side, start: int, index: int, row: Row) -> int:
    """The first of the tokens without text before this one, behind those in pairs and the one space."""
    paired = {pair[index] for pair in row.pairs}
    while start > 0 and not side.tokens[start - 1].text and not side.tokens[start - 1].opaque:
        if side.column + start - 1 in paired or side.tokens[start - 1].held_space:
            break
        start -= 1
    return start


_Run = tuple[int, int, int]
"""A stretch of text that both sides have: where it begins on each, and its length."""


class _Search:
    """The places at which alignment can resume, of a segment from its first difference on."""

    def __init__(self, teacher: _Side, student: _Side) -> None:
        self.columns = (teacher.column, student.column)
        self.starts = (_starts(teacher), _starts(student))
        texts = (_units(teacher), _units(student))
        self.places = [
            place for run in _correspondence(texts, self.starts) for place in self._places_in(run, texts)
        ]

    def next_place(self, teacher: _Side, student: _Side) -> tuple[int, int] | None:
        """The tokens of these rests with which alignment resumes: the next place with a chunk behind it."""
        at = (teacher.column - self.columns[0], student.column - self.columns[1])
        here = (self.starts[0][at[0]], self.starts[1][at[1]])
        for place in self.places:
            if place != here and place[0] >= here[0] and place[1] >= here[1]:
                ahead = (
                    max(self.starts[0].index(place[0]) - at[0], 0),
                    max(self.starts[1].index(place[1]) - at[1], 0),
                )
                sides = (teacher.rest(ahead[0]).copy(), student.rest(ahead[1]).copy())
                _settle_one_spaces(*sides)
                if len(_sync_points(*sides)) > 1:
                    return ahead
        return None

    def _places_in(self, run: _Run, texts: tuple[list[int], list[int]]) -> list[tuple[int, int]]:
        """The places in a run that are boundaries on both sides, or would be but for a space before one.

        Only those that have behind them, in the run, one that is a boundary on both sides as it is.
        """
        found: list[tuple[int, int]] = []
        last_exact = 0
        for place in ((run[0] + offset, run[1] + offset) for offset in range(run[2] + 1)):
            begins = [at in starts for at, starts in zip(place, self.starts, strict=True)]
            spaced = [
                at > 0 and text[at - 1] == _SPACE and at - 1 in starts
                for at, text, starts in zip(place, texts, self.starts, strict=True)
            ]
            if all(begins):
                last_exact = len(found)
                found.append(place)
            elif begins[0] and spaced[1]:
                found.append((place[0], place[1] - 1))
            elif begins[1] and spaced[0]:
                found.append((place[0] - 1, place[1]))
        return found[:last_exact]


_SPACE = 0x20


def _units(side: _Side) -> list[int]:
    """The bytes of a text, and -1 for each opaque token."""
    return [unit for token in side.tokens for unit in ([-1] if token.opaque else token.text)]


def _starts(side: _Side) -> list[int]:
    """Where in these units each token begins, and where the last one ends."""
    return list(accumulate((1 if token.opaque else len(token.text) for token in side.tokens), initial=0))


def _correspondence(texts: tuple[list[int], list[int]], starts: tuple[list[int], list[int]]) -> list[_Run]:
    """What corresponds in two texts, in order.

    What both begin with and what both end with does. Between them lies the sequence of common runs in which
    most neighbours stay neighbours (`_best_runs`), as far as it can be believed (`_believed`). The two texts
    are told apart by what they say, not by their names, so that swapping them swaps the result.
    """
    if texts[0] == texts[1]:
        return [(start, start, end - start) for start, end in _known(texts[0])]
    if _content(texts[0], starts[0]) > _content(texts[1], starts[1]):
        return [(x, y, length) for y, x, length in _correspondence(texts[::-1], starts[::-1])]
    one, other = texts
    beginning = _agreement(one, other)
    ending = _agreement(one[beginning:][::-1], other[beginning:][::-1])
    ends = (len(one) - ending, len(other) - ending)
    runs = _best_runs(one[beginning : ends[0]], other[beginning : ends[1]])
    runs = _with_singles(one[beginning : ends[0]], other[beginning : ends[1]], runs)
    runs = [(x + beginning, y + beginning, length) for x, y, length in runs]
    runs = _believed(one, runs, (beginning, beginning), ends)
    runs = [(0, 0, beginning), *runs, (*ends, ending)]
    return _grown(one, other, [run for run in runs if run[2]])


def _known(text: list[int]) -> list[tuple[int, int]]:
    """The stretches that are known."""
    borders = [-1, *(at for at, unit in enumerate(text) if unit < 0), len(text)]
    return [(before + 1, behind) for before, behind in pairwise(borders) if before + 1 < behind]


def _content(text: list[int], starts: list[int]) -> tuple[list[int], list[int], list[int]]:
    """By what two texts are told apart: bytes, 255 for an unknown one, which those are, boundaries."""
    unknown = [at for at, unit in enumerate(text) if unit < 0]
    return [unit & 0xFF for unit in text], unknown, starts


def _agreement(one: list[int], other: list[int]) -> int:
    """How many units the two have in common at their beginning; an unknown one is like no other."""
    both = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda units: units[0] == units[1] >= 0, both))


def _best_runs(one: list[int], other: list[int], alone: int = 0) -> list[_Run]:
    """The sequence of common runs in which most neighbours stay neighbours: a run of n bytes keeps n - 1.

    Where a byte counts `alone`, too, it is the longest common subsequence.

    Of several that are as good, the one whose last run ends latest on the second side, then on the first; and
    of those the one whose run before it ends latest, and so on. Each begins as early as the bytes agree.
    """
    score = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    ends: dict[tuple[int, int], int] = {}  # what the best sequence has whose last run ends here
    for x, y in product(range(1, len(one) + 1), range(1, len(other) + 1)):
        if one[x - 1] == other[y - 1] >= 0:
            ends[x, y] = max(score[x - 1][y - 1] + alone, ends.get((x - 1, y - 1), -1) + 1)
        score[x][y] = max(score[x - 1][y], score[x][y - 1], ends.get((x, y), 0))
    runs: list[_Run] = []
    x, y = len(one), len(other)
    while x > 0 and y > 0:
        if ends.get((x, y)) == score[x][y]:
            length = next(back for back in count(1) if (x - back, y - back) not in ends)
            x, y = x - length, y - length
            runs.append((x, y, length))
        elif score[x][y - 1] == score[x][y]:
            y -= 1
        else:
            x -= 1
    return runs[::-1]


_CLOSE = 16
"""Most bytes between two runs, on either side, of which those are looked for that agree alone."""


def _with_singles(one: list[int], other: list[int], runs: list[_Run]) -> list[_Run]:
    """These runs and, where little lies between two of them, those of its longest common subsequence."""
    found: list[_Run] = []
    x = y = 0
    for run in [*runs, (len(one), len(other), 0)]:
        if max(run[0] - x, run[1] - y) <= _CLOSE:
            between = _best_runs(one[x : run[0]], other[y : run[1]], alone=1)
            found += [(x + at, y + other_at, length) for at, other_at, length in between]
        found.append(run)
        x, y = run[0] + run[2], run[1] + run[2]
    return found[:-1]


_BYTE, _JUMP, _DOUBLING = 4, 2, 3
"""What a byte that agrees saves, what a jump costs, and what each doubling of what it skips on a side."""


def _believed(text: list[int], runs: list[_Run], start: tuple[int, int], end: tuple[int, int]) -> list[_Run]:
    """Of these runs those that save most together: a byte that agrees saves something, and each jump costs.

    Of several that save as much, the one whose last run comes latest, and so on. Of spaces that follow each
    other only the first counts: in source code they agree by chance.
    """
    best: list[tuple[int, list[_Run]]] = [(0, [])]
    stops = [(*start, 0), *runs]
    for index, (x, y, length) in enumerate([*runs, (*end, 0)], start=1):
        spent = [
            (saved - _cost(stop, (x, y)), before, chain)
            for before, ((saved, chain), stop) in enumerate(zip(best, stops[:index], strict=True))
        ]
        saved, _, chain = max(spent, key=lambda way: way[:2])
        bytes_of = text[x : x + length]
        repeated = sum(both == (_SPACE, _SPACE) for both in pairwise(bytes_of))
        best.append((saved + _BYTE * (length - repeated), [*chain, (x, y, length)]))
    return best[-1][1][:-1]


def _cost(run: _Run, place: tuple[int, int]) -> int:
    """What it takes to say where the next run begins, from the end of this one."""
    skipped = (place[0] - run[0] - run[2], place[1] - run[1] - run[2])
    return _JUMP + _DOUBLING * sum((bytes_skipped + 1).bit_length() - 1 for bytes_skipped in skipped)


def _grown(one: list[int], other: list[int], runs: list[_Run]) -> list[_Run]:
    """Each run as long as the bytes agree, back to the end of the one before and on to the one behind."""
    grown: list[_Run] = []
    end = (0, 0)
    for (x, y, length), behind in zip(runs, [*runs, (len(one), len(other), 0)][1:], strict=True):
        back = _agreement(one[end[0] : x][::-1], other[end[1] : y][::-1])
        stop = (x + length, y + length)
        on = _agreement(one[stop[0] : behind[0]], other[stop[1] : behind[1]])
        grown.append((x - back, y - back, back + length + on))
        end = (stop[0] + on, stop[1] + on)
    return grown


def _sync_points(teacher: _Side, student: _Side) -> list[int]:
    """Every place where both sides have just consumed the same text; 0 is where the segment begins."""
    same = takewhile(lambda both: both[0] == both[1], zip(teacher.text, student.text, strict=False))
    common = sum(1 for _ in same)
    both = {0} | (teacher.last_text.keys() & student.last_text.keys())
    return sorted(place for place in both if place <= common)


def _settle_one_spaces(teacher: _Side, student: _Side) -> None:
    """Sets one space aside after the other, from left to right; a place that was passed stays settled."""
    reached = 0
    while True:
        places = [place for place in _sync_points(teacher, student) if place >= reached]
        calls = ((place, _one_space_at(teacher, student, place)) for place in places)
        reached, longer = next(((place, side) for place, side in calls if side is not None), (0, None))
        if longer is None:
            return
        longer.set_space_aside(longer.next_text[reached])


def _one_space_at(teacher: _Side, student: _Side, place: int) -> _Side | None:
    """The side whose first space is set aside here, if any.

    At the start of a segment, right after a special on either side, and right after a user-defined token of
    the longer side where its tokenizer puts dummy prefixes: where the opening runs of spaces, up to the next
    special, differ by exactly one; not where they are equal once read on through specials.
    """
    at_teacher, at_student = teacher.next_text[place], student.next_text[place]
    longer = teacher.spaces_from(at_teacher, through_specials=False)
    longer -= student.spaces_from(at_student, through_specials=False)
    whole = teacher.spaces_from(at_teacher, through_specials=True)
    whole -= student.spaces_from(at_student, through_specials=True)
    if abs(longer) != 1 or whole == 0:
        return None
    side, at = (teacher, at_teacher) if longer == 1 else (student, at_student)
    opens = place == 0 or teacher.is_after_special(at_teacher) or student.is_after_special(at_student)
    return side if opens or side.may_prefix_at(at) else None


def _intersect(teacher: _Side, student: _Side, row: Row) -> tuple[int, int]:
    """Specials pair at sync points, chunks lie between neighbouring ones.

    Returns:
        The tokens that follow the last sync point.
    """
    places = _sync_points(teacher, student)
    for place, next_place in zip_longest(places, places[1:]):
        for pair in _role_pairs(teacher, student, place):
            _add_pair(row, teacher, student, pair)
        start = (teacher.next_text[place], student.next_text[place])
        if next_place is not None:
            _add_chunk(row, teacher, student, start, next_place)
    return start


def _add_chunk(row: Row, teacher: _Side, student: _Side, start: tuple[int, int], place: int) -> None:
    """The tokens from `start` to those whose text ends at `place`."""
    end = (teacher.last_text[place] + 1, student.last_text[place] + 1)
    teachers, students = teacher.tokens[start[0] : end[0]], student.tokens[start[1] : end[1]]
    if len(teachers) == len(students) == 1:
        space = teachers[0].held_space or students[0].held_space
        _add_pair(row, teacher, student, (*start, PairKind.SPACE if space else PairKind.EXACT))
    columns = (teacher.column + start[0], teacher.column + end[0])
    row.chunks.append((*columns, student.column + start[1], student.column + end[1]))
    row.encloses_zero_width.append(any(not token.text for token in teachers + students))
    row.counts["chunk_bytes"] += sum(len(token.text) for token in teachers)


def _role_pairs(teacher: _Side, student: _Side, place: int) -> list[Pair]:
    """From left to right on the teacher's side, in order, each once, the first of each run only."""
    students = _opening_specials(student, place)
    pairs: list[Pair] = []
    for index in _opening_specials(teacher, place):
        roles = teacher.tokens[index].roles
        match = next((other for other in students if roles & student.tokens[other].roles), None)
        if match is not None:
            pairs.append((index, match, PairKind.ROLE))
            students = [other for other in students if other > match]
    return pairs


def _opening_specials(side: _Side, place: int) -> list[int]:
    """The specials with which the place opens, of a run of one repeated special only the first."""
    specials: list[int] = []
    for index in side.zero_width.get(place, []):
        if not side.tokens[index].special:
            break
        specials.append(index)
    runs = groupby(specials, lambda index: side.tokens[index].token_id)
    return [next(run) for _, run in runs]


def _add_pair(row: Row, teacher: _Side, student: _Side, pair: Pair) -> None:
    row.pairs.append((teacher.column + pair[0], student.column + pair[1], pair[2]))
    row.counts[pair[2].name.lower()] += 1


def overlaps(
    teacher: Vocabulary, student: Vocabulary, teacher_ids: Sequence[int], student_ids: Sequence[int], row: Row
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """For each token the other side's columns with which it shares bytes of common text, half-open.

    In each chunk: write the text of both sides, drop the one space with which the longer one begins, compute
    all spans, intersect them. (0, 0) for a token that shares no byte with anything.

    Args:
        teacher: its vocabulary.
        student: its vocabulary.
        teacher_ids: one row.
        student_ids: the same row of the student.
        row: what `align` found in it.

    Returns:
        The ranges of the teacher's tokens, and those of the student's.
    """
    found: tuple[list[tuple[int, int]], list[tuple[int, int]]] = (
        [(0, 0)] * len(teacher_ids),
        [(0, 0)] * len(student_ids),
    )
    for chunk in row.chunks:
        teachers = {column: teacher.token_bytes(teacher_ids[column]) or b"" for column in range(*chunk[:2])}
        students = {column: student.token_bytes(student_ids[column]) or b"" for column in range(*chunk[2:])}
        texts = (b"".join(teachers.values()), b"".join(students.values()))
        if texts[0] != texts[1]:
            longer, first = (teachers, chunk[0]) if len(texts[0]) > len(texts[1]) else (students, chunk[2])
            longer[first] = longer[first].removeprefix(b" ")
        covered = (_spans_of(teachers), _spans_of(students))
        for side, others, ranges in ((*covered, found[0]), (*covered[::-1], found[1])):
            for column, (start, end) in side.items():
                met = [other for other, span in others.items() if max(start, span[0]) < min(end, span[1])]
                if met:
                    ranges[column] = (min(met), max(met) + 1)
    return found


def _spans_of(texts: Mapping[int, bytes]) -> dict[int, tuple[int, int]]:
    """Where the bytes of each lie in the text of all of them."""
    ends = accumulate((len(text) for text in texts.values()), initial=0)
    return dict(zip(texts, pairwise(ends), strict=True))


def spans(vocabulary: Vocabulary, ids: Sequence[int]) -> list[tuple[int, int]]:
    """The byte interval of each token, the dummy prefix dropped; (-1, -1) for an opaque one."""
    found: list[tuple[int, int]] = []
    end = 0
    for index, token_id in enumerate(ids):
        if vocabulary.kind(token_id) == Kind.OPAQUE:
            found.append((-1, -1))
            continue
        text = vocabulary.token_bytes(token_id) or b""
        before = ids[:index]
        opens = not any(
            vocabulary.token_bytes(other) or vocabulary.kind(other) == Kind.OPAQUE for other in before
        )
        if vocabulary.dummy_prefix and opens:
            text = text.removeprefix(b" ")
        found.append((end, end + len(text)))
        end += len(text)
    return found


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's table: the byte that each character of a byte-level spelling stands for.

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, are U+0100 and on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def token_bytes(spelling: str, kind: Kind, steps: Sequence[tuple[str, str, str]]) -> bytes | None:
    """What a token adds to the text, from its spelling and the steps of its tokenizer's decoder.

    Only normal tokens go through the byte-level table and the byte fallback; a user-defined one is its
    content, with `▁` and the space before a word read as the decoder reads them.

    Returns:
        Its bytes; None for a byte that alone does not say what the text is.
    """
    alphabet = byte_level_alphabet()
    for place, (name, old, new) in enumerate(steps):
        if name == "replace":
            spelling = spelling.replace(old, new)
        elif name == "word":
            goes_on = old != "" and spelling.startswith(old)
            spelling = spelling.removeprefix(old) if goes_on else f" {spelling}"
        elif kind not in {Kind.NORMAL, Kind.BYTE}:
            continue
        elif name == "byte_level" and all(character in alphabet for character in spelling):
            return _replaced(bytes(alphabet[character] for character in spelling), steps[place + 1 :])
        elif name == "byte_fallback" and re.fullmatch("<0x[0-9A-Fa-f]{2}>", spelling):
            return _replaced(bytes.fromhex(spelling[3:5]), steps[place + 1 :])
    return spelling.encode()


def _replaced(token: bytes, steps: Sequence[tuple[str, str, str]]) -> bytes | None:
    """What the replacements behind the step that made bytes make of them.

    They see neighbouring bytes as text. So the second byte of what is looked for says nothing alone: None.
    """
    for name, old, new in steps:
        if name == "replace" and old:
            if len(token) == 1 and token == old.encode()[1:2]:
                return None
            token = token.replace(old.encode(), new.encode())
    return token


def published_eta(
    teacher_spellings: Sequence[str],
    student_spellings: Sequence[str],
    *,
    teacher_eos: str | None = None,
    student_eos: str | None = None,
) -> list[tuple[int, int]]:
    """The exact token alignment as published (arXiv 2504.11426), faults included.

    Every `▁` and `Ġ` is deleted from the spellings; both sequences are walked with the joined spellings
    consumed so far as histories. Equal histories and equal tokens, or both an end of sequence, are a pair.
    Once two vocabularies spell a piece differently (`Ċ` and `<0x0A>`), no later token of the row can pair.

    Args:
        teacher_spellings: the tokens of one row as the teacher's vocabulary spells them.
        student_spellings: the same for the student.
        teacher_eos: how the teacher's vocabulary spells its end of sequence.
        student_eos: the same for the student.

    Returns:
        Pairs of positions.
    """
    teacher = [spelling.replace("▁", "").replace("Ġ", "") for spelling in teacher_spellings]
    student = [spelling.replace("▁", "").replace("Ġ", "") for spelling in student_spellings]
    teacher_history = student_history = ""
    at_teacher = at_student = 0
    pairs: list[tuple[int, int]] = []
    while at_teacher < len(teacher) and at_student < len(student):
        if teacher_history == student_history:
            tokens = (teacher[at_teacher], student[at_student])
            if tokens[0] == tokens[1] or tokens == (teacher_eos, student_eos):
                pairs.append((at_teacher, at_student))
            steps = (1, 1)
        else:
            steps = (1, 0) if len(teacher_history) < len(student_history) else (0, 1)
        if steps[0]:
            teacher_history += teacher[at_teacher]
            at_teacher += 1
        if steps[1]:
            student_history += student[at_student]
            at_student += 1
    return pairs
