"""The oracle of benches/ on texts worked out by hand, and that `make proof`'s two commands run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import subprocess
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import assets
import corpus
import judge
import kinds
import normalisers
import oracle
import parts
import real_text
import recall
import repeats
import rewrites
from conftest import needs_assets
from dskd import Vocabulary, reference
from judge import Row, batch_of, by_dskd, by_published_rule, changed_row, same_row
from oracle import Change
from slides import Box

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from corpus import Tokenizer


def assert_same_text(teacher: str, student: str, same: Sequence[oracle.Piece]) -> None:
    assert_same_bytes(teacher.encode(), student.encode(), same)


def assert_same_bytes(one: bytes, other: bytes, same: Sequence[oracle.Piece]) -> None:
    for first, second, length in same:
        assert one[first : first + length] == other[second : second + length]
        assert length > 0
    for left, right in itertools.pairwise(same):
        assert left[0] + left[2] <= right[0]
        assert left[1] + left[2] <= right[1]


# ---- What two texts share --------------------------------------------------------------------------------


def test_unchanged_text_is_one_piece() -> None:
    assert oracle.pieces("été", []) == [(0, 0, 5)]
    assert oracle.pieces("", []) == []


def test_pieces_of_an_edit_script_are_the_text_between_its_changes() -> None:
    text = "né abcdef"
    changes = [Change(1, 2, "oß"), Change(4, 4, "XY"), Change(7, 9, "")]
    assert oracle.changed(text, changes) == "noß aXYbcd"
    assert oracle.pieces(text, changes) == [(0, 0, 1), (3, 4, 2), (5, 8, 3)]


def test_changes_at_both_ends_leave_the_middle() -> None:
    changes = [Change(0, 0, "new"), Change(3, 4, "")]
    assert oracle.changed("abcd", changes) == "newabc"
    assert oracle.pieces("abcd", changes) == [(0, 3, 3)]


def test_a_change_into_itself_changes_nothing() -> None:
    assert oracle.pieces("abcd", [Change(2, 2, "")]) == [(0, 0, 4)]


def test_pieces_are_the_same_text_on_both_sides_after_random_edits() -> None:
    rng = random.Random(0)  # noqa: S311
    text = "Ein Text — with ünïcödé, \t spaces and 你好. " * 20
    for count in (1, 5):
        for _ in range(100):
            changes = real_text.edited(text, count, text, rng)
            new = oracle.changed(text, changes)
            assert len(changes) == count
            assert all(0 < max(len(change.new), change.end - change.start) <= 200 for change in changes)
            assert all(left.end <= right.start for left, right in itertools.pairwise(changes))
            assert_same_text(text, new, oracle.pieces(text, changes))
            assert_same_text(new, text, oracle.swapped(oracle.pieces(text, changes)))
            kept = len(text.encode()) - sum(len(text[edit.start : edit.end].encode()) for edit in changes)
            assert sum(length for _, _, length in oracle.pieces(text, changes)) == kept


def test_nfd_changes_one_cluster_at_a_time() -> None:
    changes = oracle.decompositions("Việt né")
    assert changes == [Change(2, 3, "e\u0323\u0302"), Change(6, 7, "e\u0301")]
    assert oracle.pieces("Việt né", changes) == [(0, 0, 2), (5, 7, 3)]


@pytest.mark.parametrize(
    "text", ["Việt Nam ngữ", "été à Noël", "q\u0307\u0323 한국 ऩ", "plain", "", "が\u0301"]
)
def test_clusters_decompose_to_the_nfd_of_the_text(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    changes = oracle.decompositions(composed)
    decomposed = unicodedata.normalize("NFD", text)
    assert oracle.changed(composed, changes) == decomposed
    assert_same_text(composed, decomposed, oracle.pieces(composed, changes))


def test_text_that_is_not_in_nfc_has_no_decompositions() -> None:
    with pytest.raises(ValueError, match="not in NFC"):
        oracle.decompositions("e\u0301")


def test_white_space_that_stays_is_unchanged() -> None:
    text = "a b\n    c"
    changes = oracle.substitutions(text, re.compile(r"\s+"), " ")
    assert changes == [Change(3, 8, " ")]
    assert oracle.pieces(text, changes) == [(0, 0, 3), (8, 4, 1)]


def test_rows_of_hindi_are_the_text_and_what_nfc_makes_of_it() -> None:
    rows = needs_assets(lambda: real_text.rows_with_composed_nukta(2))
    for row in rows:
        assert unicodedata.normalize("NFC", row.teacher) == row.student != row.teacher
        assert_same_text(row.teacher, row.student, row.same)
        assert len(row.same) > 2


def test_what_a_third_text_shares_goes_by_way_of_the_second() -> None:
    assert oracle.composed([(0, 2, 4), (6, 6, 4)], [(0, 0, 3), (4, 3, 4), (9, 8, 1)]) == [
        (0, 2, 1),
        (2, 3, 2),
        (6, 5, 2),
        (9, 8, 1),
    ]
    assert oracle.composed([(0, 0, 5)], []) == []


def test_small_letters_are_known_by_character() -> None:
    changes = normalisers.lower_case("Às A")
    assert changes == [Change(0, 1, "à"), Change(3, 4, "a")]
    assert oracle.pieces("Às A", changes) == [(2, 2, 2)]


def test_a_small_letter_that_depends_on_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="character by character: 'ΟΔΟΣ'"):
        normalisers.lower_case("ΟΔΟΣ")


def test_nfkc_is_known_by_character() -> None:
    changes = normalisers.nfkc("ﬁn ½ Ａ")
    assert changes == [Change(0, 1, "fi"), Change(3, 4, "1⁄2"), Change(5, 6, "A")]
    assert oracle.changed("ﬁn ½ Ａ", changes) == "fin 1⁄2 A"
    assert oracle.pieces("ﬁn ½ Ａ", changes) == [(3, 2, 2), (7, 9, 1)]


def test_nfkc_that_joins_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="not in NFKC character by character"):
        normalisers.nfkc("e\u0301")


def test_nfc_is_known_by_cluster() -> None:
    changes = normalisers.composed("ne\u0301 e")
    assert changes == [Change(1, 3, "é")]
    assert oracle.pieces("ne\u0301 e", changes) == [(0, 0, 1), (4, 3, 2)]


def test_xlm_r_reads_one_space_between_words_and_none_around() -> None:
    text = " a\n  ﬁ b\n"
    changes = normalisers.nfkc_and_white_space(text)
    assert changes == [Change(0, 1, ""), Change(2, 5, " "), Change(5, 6, "fi"), Change(8, 9, "")]
    assert oracle.changed(text, changes) == "a fi b"


def test_bert_reads_small_letters_and_spaces_around_marks() -> None:
    text = "Zoë:\tE-I, e.g. x"
    assert oracle.changed(text, normalisers.words_of_bert(text)) == "zoe : e - i, e. g. x"


# ---- What is not known -----------------------------------------------------------------------------------


def test_any_of_equal_lines_could_be_the_one_that_is_gone() -> None:
    text = "x\nab\nab\nab\ny"
    for start in (2, 5, 8):
        row = changed_row(text, [Change(start, start + 3, "")])
        assert row.student == "x\nab\nab\ny"
        assert row.undecided == [Box(1, 11, 1, 8)]  # the line end before them could be the one that is gone


def test_what_is_put_in_slides_in_the_text_that_has_it() -> None:
    row = changed_row("x1y", [Change(2, 2, "23123")])
    assert row.student == "x123123y"
    assert row.undecided == []
    row = changed_row("x123y", [Change(4, 4, "123")])
    assert row.undecided == [Box(1, 4, 1, 7)]
    assert row.swapped().undecided == [Box(1, 7, 1, 4)]


def test_what_stands_in_anothers_place_does_not_slide() -> None:
    assert changed_row("aaaa", [Change(1, 2, "b")]).undecided == []


def test_slides_that_meet_are_one_and_end_at_other_changes() -> None:
    text = "aaaaaab"
    row = changed_row(text, [Change(1, 2, ""), Change(4, 5, "")])
    assert row.undecided == [Box(0, 6, 0, 4)]
    row = changed_row(text, [Change(1, 2, ""), Change(4, 5, "c")])
    assert row.undecided == [Box(0, 4, 0, 3)]


def test_what_slides_within_its_box_leaves_the_same_text_and_beyond_it_another() -> None:
    rng = random.Random(2)  # noqa: S311
    for _ in range(300):
        text = "".join(rng.choices("ab", k=rng.randint(1, 12)))
        start = rng.randrange(len(text))
        end = rng.randint(start + 1, len(text))
        row = changed_row(text, [Change(start, end, "")])
        (box,) = row.undecided or [Box(start, end, start, start)]
        left = [text[:at] + text[at + end - start :] for at in range(len(text) - (end - start) + 1)]
        reached = range(box.teacher_start, box.teacher_end - (end - start) + 1)
        assert all(left[at] == row.student for at in reached), (text, start, end)
        beyond = {reached[0] - 1, reached[-1] + 1} & set(range(len(left)))
        assert all(left[at] != row.student for at in beyond), (text, start, end)


def test_inside_of_a_value_nothing_is_known() -> None:
    changes = [Change(1, 4, "35"), Change(5, 5, "6")]
    assert changed_row("a345b", changes).undecided == []
    assert changed_row("a345b", changes, values=True).undecided == [Box(1, 4, 1, 3), Box(5, 5, 4, 5)]


def test_pairs_of_one_box_are_not_judged_and_others_are() -> None:
    side = made_of("x|a|a|a|y", "x|a|a|y")
    row = changed_row("xaaay", [Change(2, 3, "")])
    batch = batch_of(side, side, [row])
    assert [divmod(number, 4) for number in batch.exact.tolist()] == [(0, 0), (4, 3)]
    pairs = np.array([(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (4, 3), (0, 1)]).T
    assert batch.undecided.among((pairs[0], pairs[1])).tolist() == [False, True, True, True, *(3 * [False])]


def test_what_is_not_judged_is_in_no_share() -> None:
    side = made_of("x|a|a|a|y", "x|a|a|y")
    found = by_dskd(batch_of(side, side, [changed_row("xaaay", [Change(2, 3, "")])]))
    assert (found.score.exist, found.score.hit, found.score.found, found.undecided) == (2, 2, 2, 2)
    assert found.as_json()["pairs"] == 4


def test_boxes_lie_in_the_text_of_the_whole_batch() -> None:
    side = made_of("x|a|a|a|y", "x|a|a|y", " x|a|a|a|y", " x|a|a|y")
    row = changed_row("xaaay", [Change(2, 3, "")])
    batch = batch_of(side, side, [row, row.swapped()])
    assert [divmod(number, 9) for number in batch.exact.tolist()] == [(0, 0), (4, 3), (5, 4), (8, 8)]


# ---- Repetitive text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*kinds.VALUES, *kinds.CHARACTERS, *kinds.CODE])
def test_of_every_kind_the_two_texts_and_what_they_share_are_known(name: str) -> None:
    rows = needs_assets(lambda: repeats.rows_of_kind(name, 8))
    for row in rows:
        assert_same_text(row.teacher, row.student, row.same)
        assert row.teacher
    assert any(row.teacher != row.student for row in rows)
    assert not all(repeats.is_large(row) for row in rows)


def test_texts_have_ten_to_three_hundred_lines_short_ones_as_often_as_long_ones() -> None:
    rng = random.Random(3)  # noqa: S311
    counts = sorted(kinds.line_count(rng) for _ in range(2000))
    assert (counts[0], counts[-1]) == (10, 300)
    assert 45 < counts[1000] < 65  # the middle of the logarithms is 54.8


def test_a_value_that_stays_is_no_change() -> None:
    version = kinds.laid(["a", ("b", "c"), ("d", "d"), ("", "e")])
    assert (version.text, version.changes) == ("abd", [Change(1, 2, "c"), Change(3, 3, "e")])


def test_json_differs_in_its_white_space_alone() -> None:
    version = kinds.laid(kinds.records_indented(random.Random(4)))  # noqa: S311
    assert json.loads(version.text) == json.loads(oracle.changed(version.text, version.changes))
    assert all(not version.text[change.start : change.end].strip() for change in version.changes)
    assert all(change.new in {"", " "} for change in version.changes)


def test_a_moved_function_passes_more_than_it_is_long() -> None:
    source = [f"def f{index}():\n" + "    pass\n" * index for index in range(1, 20)]
    for seed in range(20):
        version = kinds.function_moved(source, random.Random(seed))  # noqa: S311
        away, back = version.changes
        assert version.text[away.start : away.end] == back.new
        assert back.start - away.end > len(back.new)


def test_more_than_a_third_is_large() -> None:
    rows = [changed_row("a" * 30, [Change(0, removed, "")]) for removed in (1, 10, 11)]
    assert [repeats.is_large(row) for row in rows] == [False, False, True]
    assert [repeats.is_large(row.swapped()) for row in rows] == [False, False, True]


@pytest.mark.parametrize("normaliser", repeats.NORMALISERS)
def test_what_a_tokenizer_makes_of_a_text_is_what_the_row_says(normaliser: str) -> None:
    made = [part for part in parts.of_normalised_text(4) if normaliser in part.name]
    assert len(made) == len(repeats.NORMALISED)
    for part in made:
        for row in needs_assets(part.rows):
            assert_same_text(row.teacher, row.student, row.same)
            assert row.teacher != row.student


def test_a_tokenizer_that_makes_something_else_of_a_text_is_refused() -> None:
    side = made_of("a|b", "a|c")
    part = parts.Part(
        "made", lambda: [changed_row("ab", [Change(1, 2, "c")])], (("made", "made"),), normalises=True
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "tokenizer", lambda _: side)
        with pytest.raises(RuntimeError, match="made reads 'ab', not 'ac'"):
            part.rows()


# ---- Which pairs exist -----------------------------------------------------------------------------------


def made_of(*spelled: str, dummy_prefix: bool = False) -> Tokenizer:
    """A tokenizer whose text is written with `|` between its tokens."""
    tokens = dict.fromkeys(["?", *itertools.chain.from_iterable(text.split("|") for text in spelled)])
    ids = {token: index for index, token in enumerate(tokens)}
    by_text = {
        _without(text.replace("|", ""), dummy_prefix): [ids[token] for token in text.split("|")]
        for text in spelled
    }
    vocabulary = Vocabulary.from_bytes([token.encode() for token in ids], dummy_prefix=dummy_prefix)
    spellings = [token.replace(" ", "Ġ") for token in ids]
    return corpus.made_of(
        "made",
        vocabulary,
        lambda texts: [by_text[text] for text in texts],
        lambda row: [spellings[token_id] for token_id in row],
    )


def _without(text: str, dummy_prefix: bool) -> str:
    return text.removeprefix(" ") if dummy_prefix else text


def existing(teacher: Tokenizer, student: Tokenizer, *rows: Row) -> list[tuple[int, int]]:
    """The pairs of the oracle, tokens counted through all rows."""
    batch = batch_of(teacher, student, rows)
    return [divmod(number, batch.students) for number in batch.exact.tolist()]


def test_tokens_with_one_span_are_a_pair() -> None:
    teacher, student = made_of("Hel|lo| world"), made_of("Hello| world")
    assert existing(teacher, student, same_row("Hello world")) == [(2, 1)]


def test_a_dummy_prefix_on_one_side_is_no_text() -> None:
    teacher, student = made_of("Hello| world"), made_of(" Hello| world", dummy_prefix=True)
    assert existing(teacher, student, same_row("Hello world")) == [(0, 0), (1, 1)]
    assert existing(student, teacher, same_row("Hello world")) == [(0, 0), (1, 1)]


def test_a_dummy_prefix_alone_has_no_width() -> None:
    teacher, student = made_of("Hello"), made_of(" |Hello", dummy_prefix=True)
    assert existing(teacher, student, same_row("Hello")) == [(0, 1)]


def test_a_dummy_prefix_on_both_sides_is_text() -> None:
    teacher = made_of(" Hello| world", dummy_prefix=True)
    student = made_of(" |Hello| world", dummy_prefix=True)
    assert existing(teacher, student, same_row("Hello world")) == [(1, 2)]
    assert existing(teacher, teacher, same_row("Hello world")) == [(0, 0), (1, 1)]


def test_tokens_of_one_row_never_pair_with_those_of_another() -> None:
    teacher, student = made_of("a|b", "c", "x|yz"), made_of("ab", "c", "x|yz")
    assert existing(teacher, student, *map(same_row, ["ab", "c", "xyz"])) == [(2, 1), (3, 2), (4, 3)]


def test_a_row_that_a_tokenizer_does_not_say_is_left_out() -> None:
    teacher = made_of("a|b", "c")
    lossy = corpus.made_of("lossy", teacher.vocabulary, lambda texts: [[3] for _ in texts], teacher.spell)
    batch = batch_of(teacher, lossy, [same_row("ab"), same_row("c")])
    assert batch.rows == [1]
    assert len(batch.exact) == 1


def test_a_pair_lies_in_one_piece_and_is_carried_onto_the_other_side() -> None:
    teacher, student = made_of("one| two| six| ten"), made_of("one| ten| five| six| ten")
    changes = [Change(3, 7, " ten five")]
    row = Row("one two six ten", "one ten five six ten", oracle.pieces("one two six ten", changes))
    assert existing(teacher, student, row) == [(0, 0), (2, 3), (3, 4)]
    assert existing(student, teacher, Row(row.student, row.teacher, oracle.swapped(row.same))) == [
        (0, 0),
        (3, 2),
        (4, 3),
    ]


def test_a_token_that_reaches_into_a_change_exists_in_no_pair() -> None:
    teacher, student = made_of("ab|cd|ef"), made_of("aX|cd|ef")
    row = Row("abcdef", "aXcdef", oracle.pieces("abcdef", [Change(1, 2, "X")]))
    assert existing(teacher, student, row) == [(1, 1), (2, 2)]


def test_one_leading_space_is_allowed_and_does_not_exist() -> None:
    teacher, student = made_of("a|  b|c"), made_of("a| | b|c")
    batch = batch_of(teacher, student, [same_row("a  bc")])
    assert batch.exact.tolist() == [0 * 4 + 0, 2 * 4 + 3]
    assert batch.allowed.tolist() == [0 * 4 + 0, 1 * 4 + 2, 2 * 4 + 3]


def test_the_oracle_equals_the_reference_where_both_read_the_same() -> None:
    rng = random.Random(1)  # noqa: S311
    for dummy_prefixes in itertools.product((False, True), repeat=2):
        for _ in range(100):
            text = "".join(rng.choices("ab é", k=rng.randint(1, 12)))
            teacher, student = (
                made_of(_cut(f" {text}" if dummy else text, rng), dummy_prefix=dummy)
                for dummy in dummy_prefixes
            )
            ids = [side.rows([text])[0].tolist() for side in (teacher, student)]
            expected = reference.align(teacher.vocabulary, student.vocabulary, *ids).pairs
            assert existing(teacher, student, same_row(text)) == [pair[:2] for pair in expected], (text, ids)


def _cut(text: str, rng: random.Random) -> str:
    return "".join(f"{character}{'|' * rng.randint(0, 1)}" for character in text[:-1]) + text[-1]


# ---- Judging ---------------------------------------------------------------------------------------------


def test_all_is_found_where_both_read_the_same() -> None:
    teacher, student = made_of("Hel|lo| world"), made_of(" Hello| world", dummy_prefix=True)
    found = by_dskd(batch_of(teacher, student, [same_row("Hello world")]))
    assert (found.score.recall, found.score.precision, found.false) == (1, 1, 0)
    assert found.coverage == (1, 1)
    assert found.missed.tolist() == [0]


def test_the_published_rule_is_judged_by_the_same_oracle() -> None:
    teacher, student = made_of("a|b|c"), made_of("a|b|c", "ab|c")
    found = by_published_rule(batch_of(teacher, student, [same_row("abc")]))
    assert found.score.exist == 1
    assert (found.score.recall, found.score.precision) == (1, 1)


def test_the_published_rule_pairs_nothing_where_the_spellings_have_differed() -> None:
    rng = random.Random(5)  # noqa: S311
    for _ in range(500):
        text = "".join(rng.choices("ab▁Ġ", k=12))
        sides = [_cut(text, rng).split("|"), _cut(text, rng).split("|")]
        sides[1][rng.randrange(len(sides[1]))] = rng.choice(("a", "c", ""))
        assert reference.published_eta(*judge.while_they_agree(*sides)) == reference.published_eta(*sides)


def test_pairs_of_other_bytes_are_false_and_their_kind_is_looked_at() -> None:
    teacher, student = made_of("a| b|c"), made_of("a|b|c| ")
    batch = batch_of(made_of("a| b|c"), made_of("a| b|c"), [same_row("a bc")])
    batch = dataclasses.replace(batch, sides=(teacher, student))
    tokens = (np.array([0, 1, 2]), np.array([0, 1, 0]))
    assert judge.false_pairs(batch, tokens, np.array([0, 2, 0], dtype=np.uint8)) == 1
    assert judge.false_pairs(batch, tokens, np.array([0, 0, 0], dtype=np.uint8)) == 2
    assert judge.false_pairs(batch, tokens, np.array([2, 2, 2], dtype=np.uint8)) == 2
    assert judge.false_pairs(batch, tokens) == 1


def test_shares_are_rounded_down() -> None:
    assert oracle.share(999_999, 1_000_000) == 0.99999
    assert oracle.share(3, 3) == 1
    assert oracle.share(0, 0) == 0


def test_shares_of_what_must_not_be_are_rounded_up() -> None:
    assert oracle.share_up(1, 1_000_000) == 0.00001
    assert oracle.share_up(0, 3) == 0
    assert oracle.share_up(3, 3) == 1


def test_of_a_tokenizer_that_loses_text_the_coverage_is_told() -> None:
    teacher = made_of("a|b|C", "ab")
    lossy = made_of("a|b|c", "a|b")
    reads = {"abC": "abc", "ab": "ab"}
    folding = corpus.made_of(
        "folding", lossy.vocabulary, lambda texts: lossy.encode([reads[text] for text in texts]), lossy.spell
    )
    rows = [same_row("abC"), same_row("ab")]
    assert recall.said_as_written(teacher, rows) == 1
    assert recall.said_as_written(folding, rows) == 0.5
    measured = recall.measure_lossy(teacher, folding, rows)
    assert measured["teacher_coverage"] == measured["student_coverage"] == 0.8
    assert (measured["ratio"], measured["published_ratio"]) == (0.4, 0.4)


# ---- Splits ----------------------------------------------------------------------------------------------


def test_a_token_splits_into_two_of_the_vocabulary() -> None:
    ids_of = {b"abc": 0, b"a": 1, b"bc": 2, b"ab": 3, b"x": 4}
    assert rewrites.ways_to_split(b"abc", ids_of) == [(1, 2)]
    assert rewrites.ways_to_split(b"a", ids_of) == []


def test_split_ids_say_the_same_text() -> None:
    side = made_of("ab|ab|c|abc" * 50, "a|b|c|ab|abc")
    (row,) = side.rows(["ababcabc" * 50])
    split = rewrites.split_ids(side, row)
    assert side.text_of(split.ids) == side.text_of(row)
    assert split.same == [(0, 0, len("ababcabc") * 50)]
    assert 1.05 < len(split.ids) / len(row) < 1.25


@pytest.mark.parametrize("rewrite", [rewrites.ids_dropped, rewrites.ids_unknown])
def test_of_lost_ids_it_is_known_which_bytes_are_left(rewrite: judge.Rewrite) -> None:
    side = corpus.tokenizer(corpus.BYTES)
    (row,) = side.rows(["Ein Text, der ein paar Stellen verliert. " * 10])
    lost = rewrite(side, row)
    assert lost.ids[0] == row[0]
    assert len(side.text_of(lost.ids)) < 0.95 * len(row)
    assert_same_bytes(side.text_of(row), side.text_of(lost.ids), lost.same)
    assert sum(length for _, _, length in lost.same) == len(side.text_of(lost.ids))


def test_a_rewritten_row_is_judged_by_what_is_left() -> None:
    side = corpus.tokenizer(corpus.BYTES)
    one = batch_of(side, side, [same_row("abcdefgh" * 20)], rewrites.ids_dropped)
    both = batch_of(side, side, [same_row("abcdefgh" * 20)], rewrites.ids_unknown, rewrites.other_ids_unknown)
    assert len(one.student.values) < len(one.teacher.values) == 160
    assert len(both.student.values) == len(both.teacher.values) == 160
    for batch in (one, both):
        pairs = np.divmod(batch.exact, batch.students)
        assert 100 < len(batch.exact) < 160
        assert (batch.teacher.values[pairs[0]] == batch.student.values[pairs[1]]).all()


# ---- The commands ----------------------------------------------------------------------------------------


def run_bench(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(judge.HERE / script), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode in {0, 1}, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def fetch_assets() -> None:
    for name in corpus.names():
        assets.tokenizer(name)
    corpus.long_texts()


def test_recall_runs_and_every_pair_is_exact(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    output = tmp_path / "recall.json"
    arguments = ["--rows=1", "--tokenizers", "gpt2", "mistral-v1", "--output", str(output)]
    ended = run_bench("recall.py", *arguments)
    assert ended.returncode == 0, ended.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    assert [(pair["teacher"], pair["student"]) for pair in results["lossless"]] == [
        ("gpt2", "mistral-v1"),
        ("mistral-v1", "gpt2"),
    ]
    for pair in results["lossless"]:
        assert pair["dskd"]["recall"] == pair["dskd"]["precision"] == 1
        assert 0 < pair["published"]["recall"] < 1
    table = run_bench("recall.py", "--table", "--output", str(output))
    assert table.stdout in ended.stdout


def test_differences_runs_and_no_pair_is_false(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    output = tmp_path / "differences.json"
    names = ["one edit", "ids split", "songs", "lists, NFC", "small cases", "unrelated"]
    arguments = [f"--part={name}" for name in names]
    ended = run_bench("differences.py", "--rows=3", *arguments, "--output", str(output))
    results: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert len(results["parts"]) == 7  # of songs there are three, one of them with lists
    for part in results["parts"]:
        assert part["false"] == 0
        assert part["exist"] > 0
        assert part["name"] in ended.stdout
    assert [pair["dskd"]["false"] for pair in results["unrelated"]] == [0, 0, 0]
    (splits,) = [part for part in results["parts"] if part["target"] == 1]
    assert splits["met"]
    missed = [part["name"] for part in results["parts"] if not part["met"]]
    assert ended.returncode == (1 if missed else 0)
    assert all(name in ended.stderr for name in missed)
    table = run_bench("differences.py", "--table", "--output", str(output))
    assert table.stdout in ended.stdout


def test_a_part_that_there_is_not_is_refused_and_the_others_are_named() -> None:
    needs_assets(fetch_assets)
    ended = run_bench("differences.py", "--rows=3", "--part=no such part")
    assert ended.returncode == 1
    assert "no part has 'no such part' in its name; there are one edit, five edits, " in ended.stderr


def test_parts_alone_leave_the_page_as_it_is() -> None:
    needs_assets(fetch_assets)
    page, file = judge.HERE / "proof.md", judge.HERE / "results" / "differences.json"
    before = page.read_bytes(), file.read_bytes()
    assert "small cases" in run_bench("differences.py", "--rows=3", "--part=small cases").stdout
    assert (page.read_bytes(), file.read_bytes()) == before


@pytest.mark.parametrize("name", ["recall", "differences"])
def test_the_page_holds_the_tables_of_the_committed_file(name: str, tmp_path: Path) -> None:
    copy = tmp_path / f"{name}.json"
    copy.write_bytes((judge.HERE / "results" / f"{name}.json").read_bytes())
    table = run_bench(f"{name}.py", "--table", "--output", str(copy)).stdout
    assert table in (judge.HERE / "proof.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["recall.py", "differences.py"])
def test_a_wrong_number_of_rows_is_refused(script: str) -> None:
    command = [sys.executable, str(judge.HERE / script), "--rows=0"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 2
    assert "'0' is not a number from 1 on" in ended.stderr
