"""Which token is which in the other vocabulary: by bytes, by role, against a slow definition."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd import Aligner, Kind, Vocabulary, VocabularyMap, _core
from dskd.vocabulary_map import vocabulary_map


@dataclass(frozen=True)
class Entry:
    """One id of a vocabulary."""

    text: bytes = b""
    kind: Kind = Kind.NORMAL
    roles: frozenset[str] = frozenset()


def text(token: bytes, kind: Kind = Kind.NORMAL) -> Entry:
    return Entry(token, kind)


def special(*roles: str) -> Entry:
    return Entry(kind=Kind.SPECIAL, roles=frozenset(roles))


OPAQUE = Entry(kind=Kind.OPAQUE)


def made_of(*entries: Entry) -> Vocabulary:
    lengths = np.array([len(entry.text) for entry in entries], dtype=np.uint32)
    kinds = np.array([entry.kind for entry in entries], dtype=np.uint8)
    roles = {token: set(entry.roles) for token, entry in enumerate(entries) if entry.roles}
    arena = b"".join(entry.text for entry in entries)
    return Vocabulary(_core.Vocabulary.from_parts(arena, lengths, kinds, roles, False))


def found(teacher: Vocabulary, student: Vocabulary) -> tuple[list[int], list[int], list[list[int]]]:
    made = vocabulary_map(teacher, student)
    return made.teacher_to_student.tolist(), made.student_to_teacher.tolist(), made.overlap.tolist()


# ---- by hand ---------------------------------------------------------------------------------------------


def test_the_same_bytes_are_the_same_token() -> None:
    teacher = Vocabulary.from_bytes([b"a", b" b", b"\xe2", b"only here"])
    student = Vocabulary.from_bytes([b"\xe2", b"b", b"a", b" b", b"A"])
    assert found(teacher, student) == ([2, 3, 0, -1], [2, -1, 0, 1, -1], [[0, 2], [1, 3], [2, 0]])


def test_empty_bytes_are_nothing_in_common() -> None:
    vocabulary = Vocabulary.from_bytes([b"", b"a", b""])
    assert found(vocabulary, vocabulary) == ([-1, 1, -1], [-1, 1, -1], [[1, 1]])


def test_opaque_ids_are_nothing_in_common() -> None:
    teacher = Vocabulary.from_bytes([None, b"a"], size=4)
    student = Vocabulary.from_bytes([b"a", None, b"", b"</s>"], roles={3: {"eos"}}, size=5)
    assert found(teacher, student) == ([-1, 0, -1, -1], [1, -1, -1, -1, -1], [[1, 0]])


def test_every_duplicate_maps_to_the_canonical_id_and_only_that_is_in_the_overlap() -> None:
    teacher = Vocabulary.from_bytes([b"b", b"a", b"a", b"a"])
    student = Vocabulary.from_bytes([b"a", b"b", b"b"])
    assert found(teacher, student) == ([1, 0, 0, 0], [1, 0, 0], [[0, 1], [1, 0]])


def test_a_normal_token_stands_before_the_byte_fallback_of_its_byte() -> None:
    kinds = np.array([Kind.BYTE, Kind.BYTE, Kind.NORMAL], dtype=np.uint8)
    core = _core.Vocabulary.from_spellings(
        ["<0x61>", "<0x62>", "a"], kinds, {}, [("byte_fallback", "", "")], False
    )
    plain = Vocabulary.from_bytes([b"a", b"b"])
    assert found(plain, Vocabulary(core)) == ([2, 1], [0, 1, 0], [[0, 2], [1, 1]])


@pytest.mark.parametrize("count", range(1, 5))
def test_normal_stands_before_user_defined_before_byte_fallback_before_unused(count: int) -> None:
    kinds = [Kind.UNUSED, Kind.BYTE, Kind.USER_DEFINED, Kind.NORMAL][:count]
    several = made_of(*(text(b"a", kind) for kind in kinds))
    assert found(made_of(text(b"a")), several) == ([count - 1], [0] * count, [[0, count - 1]])


def test_specials_of_the_same_role_are_the_same_token() -> None:
    teacher = Vocabulary.from_bytes([b"<s>", b"</s>", b"a"], roles={0: {"bos"}, 1: {"eos"}})
    student = Vocabulary.from_bytes([b"<|end|>", b"<|begin|>"], roles={0: {"eos"}, 1: {"bos"}})
    assert found(teacher, student) == ([1, 0, -1], [1, 0], [[0, 1], [1, 0]])


def test_a_special_is_not_the_text_of_its_literal() -> None:
    teacher = Vocabulary.from_bytes([b"</s>"], roles={0: {"eos"}})
    student = Vocabulary.from_bytes([b"</s>"])
    assert found(teacher, student) == ([-1], [-1], [])


def test_eos_stands_before_the_literal_before_bos() -> None:
    all_three = made_of(special("bos", "eos", "<|x|>"))
    literal_and_bos = made_of(special("bos", "<|x|>"))
    targets = made_of(special("bos"), special("<|x|>"), special("eos"))
    assert found(all_three, targets) == ([2], [0, 0, 0], [[0, 2]])
    assert found(literal_and_bos, targets) == ([1], [0, 0, -1], [[0, 1]])


def test_a_role_that_the_other_side_lacks_gives_way_to_the_next() -> None:
    all_three = made_of(special("bos", "eos", "<|x|>"))
    assert found(all_three, made_of(special("bos"), special("<|x|>")))[0] == [1]
    assert found(all_three, made_of(special("bos")))[0] == [0]
    assert found(all_three, made_of(special("<|y|>")))[0] == [-1]


def test_of_several_ids_with_a_role_the_lowest_has_it() -> None:
    teacher = made_of(special("eos"), special("eos", "<|im_end|>"), special("eos"))
    student = made_of(text(b"a"), special("eos", "<|end|>"), special("eos", "<|im_end|>"))
    assert found(teacher, student) == ([1, 1, 1], [-1, 0, 0], [[0, 1]])


def test_padding_and_unknown_text_never_map() -> None:
    both = made_of(special("pad"), special("unk", "<unk>"), special("pad", "unk"), OPAQUE)
    other = made_of(special("pad", "x"), special("unk", "y"), special("pad", "unk"), OPAQUE)
    assert found(both, other) == ([-1] * 4, [-1] * 4, [])


def test_other_roles_of_what_pads_or_is_unknown_do_map() -> None:
    teacher = made_of(special("pad", "eos"), special("unk", "bos"))
    student = made_of(special("unk", "bos", "pad"), special("eos"))
    assert found(teacher, student) == ([1, 0], [1, 0], [[0, 1], [1, 0]])


def test_an_opaque_id_does_not_map_by_its_roles() -> None:
    opaque = made_of(Entry(kind=Kind.OPAQUE, roles=frozenset({"unk", "eos", "x"})))
    assert found(opaque, made_of(special("eos", "x"))) == ([-1], [-1], [])


def test_vocabularies_with_nothing_in_common_have_an_empty_overlap_of_pairs() -> None:
    made = vocabulary_map(made_of(text(b"a")), made_of(text(b"b")))
    assert made.overlap.shape == (0, 2)
    assert made.overlap.dtype == np.int64


# ---- against the definition ------------------------------------------------------------------------------

TEXTS = st.sampled_from([b"", b"a", b"b", b"ab", b"aba", b" ", b"\xff"])
TEXT_KINDS = st.sampled_from([Kind.NORMAL, Kind.USER_DEFINED, Kind.BYTE, Kind.UNUSED])
ROLES = st.tuples(
    st.sets(st.sampled_from(["bos", "eos", "pad", "unk"]), max_size=3),
    st.none() | st.sampled_from(["<|x|>", "<|y|>", "</s>"]),  # at most one literal each
).map(lambda drawn: frozenset(drawn[0] | ({drawn[1]} if drawn[1] else set())))
ENTRIES = st.lists(
    st.builds(Entry, TEXTS, TEXT_KINDS)
    | st.builds(Entry, st.just(b""), st.just(Kind.SPECIAL), ROLES)
    | st.builds(Entry, st.just(b""), st.just(Kind.OPAQUE), ROLES),
    min_size=1,
    max_size=8,
)


def image(entry: Entry, others: list[Entry]) -> int:
    """Which of the others the entry is; -1 for none."""
    if entry.kind == Kind.SPECIAL:
        literals = sorted(entry.roles - {"bos", "eos", "pad", "unk"})
        for role in ["eos", *literals, "bos"]:
            for token, other in enumerate(others):
                if role in entry.roles and other.kind == Kind.SPECIAL and role in other.roles:
                    return token
        return -1
    if entry.kind == Kind.OPAQUE or entry.text == b"":
        return -1
    for kind in [Kind.NORMAL, Kind.USER_DEFINED, Kind.BYTE, Kind.UNUSED]:
        for token, other in enumerate(others):
            if other.kind == kind and other.text == entry.text:
                return token
    return -1


@given(ENTRIES, ENTRIES)
def test_a_map_equals_its_definition(teacher: list[Entry], student: list[Entry]) -> None:
    forth = [image(entry, student) for entry in teacher]
    back = [image(entry, teacher) for entry in student]
    overlap = [
        [t, s] for t in range(len(teacher)) for s in range(len(student)) if (forth[t], back[s]) == (s, t)
    ]
    assert found(made_of(*teacher), made_of(*student)) == (forth, back, overlap)


@given(ENTRIES, ENTRIES)
def test_swapped_sides_give_the_map_swapped(teacher: list[Entry], student: list[Entry]) -> None:
    forth, back, overlap = found(made_of(*teacher), made_of(*student))
    swapped = sorted([s, t] for t, s in overlap)
    assert found(made_of(*student), made_of(*teacher)) == (back, forth, swapped)


@given(ENTRIES, ENTRIES)
def test_an_id_is_in_the_overlap_at_most_once(teacher: list[Entry], student: list[Entry]) -> None:
    overlap = found(made_of(*teacher), made_of(*student))[2]
    for side in zip(*overlap, strict=True):
        assert len(set(side)) == len(side)


@given(ENTRIES)
def test_a_vocabulary_maps_to_itself_by_canonical_ids(entries: list[Entry]) -> None:
    vocabulary = made_of(*entries)
    forth, _, overlap = found(vocabulary, vocabulary)
    texts = [token for token, entry in enumerate(entries) if entry.kind < Kind.SPECIAL]
    assert [forth[token] for token in texts] == vocabulary.canonical_ids[texts].tolist()
    assert all(t == s for t, s in overlap)


# ---- by the longest prefix -------------------------------------------------------------------------------


def prefixes(teacher: Vocabulary, student: Vocabulary) -> list[int]:
    return [int(token) for token in vocabulary_map(teacher, student).teacher_to_student_prefix]


def test_a_token_maps_to_the_longest_token_with_which_it_begins() -> None:
    teacher = Vocabulary.from_bytes([b"abcd", b"abx", b"b", b"xab", b"ab"])
    student = Vocabulary.from_bytes([b"a", b"abcde", b"ab", b"abc", b"bc"])
    assert prefixes(teacher, student) == [3, 2, -1, -1, 2]


def test_tokens_without_bytes_begin_with_nothing() -> None:
    teacher = Vocabulary.from_bytes([b"", None, b"a"])
    student = Vocabulary.from_bytes([b"", None, b"a"])
    assert prefixes(teacher, student) == [-1, -1, 2]


def test_specials_map_by_role_and_not_by_the_prefix_of_their_literal() -> None:
    teacher = Vocabulary.from_bytes([b"</s>", b"<s>"], roles={0: {"eos"}, 1: {"bos"}})
    student = Vocabulary.from_bytes([b"<", b"<eos>"], roles={1: {"eos"}})
    assert prefixes(teacher, student) == [1, -1]


def longest_prefix(entry: Entry, others: list[Entry]) -> int:
    """The image of the longest prefix of the entry that is a token."""
    if entry.kind == Kind.SPECIAL:
        return image(entry, others)
    images = [
        image(text(entry.text[:length]), others)
        for length in range(len(entry.text), 0, -1)
        if entry.kind != Kind.OPAQUE
    ]
    return next((token for token in images if token >= 0), -1)


@given(ENTRIES, ENTRIES)
def test_the_prefix_map_equals_its_definition(teacher: list[Entry], student: list[Entry]) -> None:
    expected = [longest_prefix(entry, student) for entry in teacher]
    assert prefixes(made_of(*teacher), made_of(*student)) == expected


@given(ENTRIES, ENTRIES)
def test_what_maps_maps_to_the_same_by_prefix(teacher: list[Entry], student: list[Entry]) -> None:
    made = vocabulary_map(made_of(*teacher), made_of(*student))
    mapped = made.teacher_to_student >= 0
    assert (made.teacher_to_student_prefix[mapped] == made.teacher_to_student[mapped]).all()


def test_the_prefix_map_is_made_once_and_goes_through_a_pickle() -> None:
    made = vocabulary_map(Vocabulary.from_bytes([b"ab"]), Vocabulary.from_bytes([b"a"]))
    assert made.teacher_to_student_prefix is made.teacher_to_student_prefix
    again = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own
    assert again.teacher_to_student_prefix.tolist() == made.teacher_to_student_prefix.tolist() == [0]


# ---- on the aligner --------------------------------------------------------------------------------------

TEACHER, STUDENT = Vocabulary.from_bytes([b"a", b"b"]), Vocabulary.from_bytes([b"b"])
FIELDS = ["teacher_to_student", "student_to_teacher", "overlap", "teacher_to_student_prefix"]


def test_an_aligner_has_the_map_of_its_vocabularies_and_makes_it_once() -> None:
    aligner = Aligner(TEACHER, STUDENT)
    assert isinstance(aligner.vocabulary_map, VocabularyMap)
    assert aligner.vocabulary_map is aligner.vocabulary_map
    assert aligner.vocabulary_map.teacher_to_student.tolist() == [-1, 0]
    assert aligner.vocabulary_map.student_to_teacher.tolist() == [1]
    assert aligner.vocabulary_map.overlap.tolist() == [[1, 0]]


@pytest.mark.parametrize("name", FIELDS)
def test_a_map_is_int64_and_cannot_be_written_to(name: str) -> None:
    array = getattr(Aligner(TEACHER, STUDENT).vocabulary_map, name)
    assert array.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
