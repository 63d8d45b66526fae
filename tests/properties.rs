//! What alignment promises, on random vocabularies and random rows.
//!
//! Vocabularies are small, of few letters and spaces, so that tokens of both sides often meet; half of
//! the rows are two tokenizations of one text with specials strewn in, the others are random ids.

use std::collections::BTreeSet;
use std::ops::Range;
use std::slice::from_ref;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dskd::align::PairKind;
use dskd::batch::{Ids, Rows, Values};
use dskd::error::Error;
use dskd::vocabulary::{Kind, Vocabulary};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use columns::{Batch, align_batch};
use promises::{
    Row, Side, Token, align, align_rows, aligner, bytes_of, kind_of, number, offsets, pairs, ranges, row_of,
    side_of,
};

mod columns;
mod promises;

// ---- Random rows ---------------------------------------------------------------------------------------

fn text(units: Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let unit = prop_oneof![
        4 => Just(" ".as_bytes()),
        4 => Just("a".as_bytes()),
        2 => Just("b".as_bytes()),
        1 => Just("é".as_bytes()),
    ];
    vec(unit, units).prop_map(|units| units.concat())
}

fn special() -> impl Strategy<Value = Token> {
    subsequence(vec!["bos", "eos", "pad", "unk", "<a>", "<b>"], 0..=3)
        .prop_map(|roles| Token::Special(roles.into_iter().collect()))
}

fn zero_width() -> impl Strategy<Value = Token> {
    prop_oneof![6 => special(), 1 => Just(Token::Text(Vec::new()))]
}

fn any_token() -> impl Strategy<Value = Token> {
    let piece = prop_oneof![text(1..4), Just(vec![0xC3]), Just(vec![0xA9])];
    let user_defined = text(1..4).prop_map(Token::UserDefined);
    prop_oneof![
        8 => piece.prop_map(Token::Text),
        2 => user_defined,
        2 => zero_width(),
        1 => Just(Token::Opaque),
    ]
}

fn random_side() -> impl Strategy<Value = Side> {
    (vec(any_token(), 1..8), vec(any::<Index>(), 0..24)).prop_map(|(vocabulary, picks)| {
        let ids = picks.iter().map(|pick| number(pick.index(vocabulary.len()))).collect();
        Side { vocabulary, ids }
    })
}

/// A tokenization of the text: cut anywhere, between characters or not, zero-width tokens strewn in, some
/// tokens user-defined.
fn tokenization(text: Vec<u8>) -> impl Strategy<Value = Vec<Token>> {
    let length = text.len();
    let strewn = vec(prop_oneof![5 => Just(Vec::new()), 1 => vec(zero_width(), 1..3)], length + 1);
    let kinds =
        vec(prop_oneof![5 => Just(Token::Text as fn(_) -> _), 1 => Just(Token::UserDefined as _)], length);
    (vec(any::<bool>(), length), kinds, strewn).prop_map(move |(cuts, kinds, strewn)| {
        let (mut tokens, mut start) = (strewn[0].clone(), 0);
        for end in 1..=length {
            if cuts[end - 1] || end == length {
                tokens.push(kinds[start](text[start..end].to_vec()));
                tokens.extend(strewn[end].iter().cloned());
                start = end;
            }
        }
        tokens
    })
}

fn two_tokenizations() -> impl Strategy<Value = (Vec<Token>, Vec<Token>)> {
    text(0..12).prop_flat_map(|text| (tokenization(text.clone()), tokenization(text)))
}

/// Two tokenizations of one text; sometimes a dummy prefix on a side, at the start or behind a user-defined
/// token, sometimes something cut off.
fn related_row() -> impl Strategy<Value = Row> {
    (two_tokenizations(), 0..5_u8, 0..3_usize).prop_map(|((mut teacher, mut student), prefix, cut)| {
        match (prefix, student.first_mut()) {
            (1, Some(Token::Text(first))) => first.insert(0, b' '),
            (2, _) => student.insert(0, Token::Text(b" ".to_vec())),
            (3, _) => teacher.insert(0, Token::Text(b" ".to_vec())),
            (4, _) => put_prefixes(&mut teacher),
            _ => {}
        }
        student.truncate(student.len().saturating_sub(cut / 2));
        Row { teacher: side_of(&teacher), student: side_of(&student) }
    })
}

/// As Llama-2 does behind tokens that were added to it.
fn put_prefixes(tokens: &mut Vec<Token>) {
    let behind = |token: Token| match token {
        Token::UserDefined(_) => vec![token, Token::Text(b" ".to_vec())],
        _ => vec![token],
    };
    *tokens = std::mem::take(tokens).into_iter().flat_map(behind).collect();
}

fn any_row() -> impl Strategy<Value = Row> {
    let random = (random_side(), random_side()).prop_map(|(teacher, student)| Row { teacher, student });
    prop_oneof![random, related_row()]
}

// ---- Properties ----------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn pairs_are_monotone(row in any_row()) {
        promises::pairs_are_monotone(&row, &align(&row));
    }

    #[test]
    fn chunks_are_in_order_and_disjoint_and_never_empty(row in any_row()) {
        promises::chunks_are_in_order_and_disjoint_and_never_empty(&row, &align(&row));
    }

    #[test]
    fn every_byte_but_the_one_spaces_is_in_a_chunk_or_a_difference(row in any_row()) {
        promises::every_byte_but_the_one_spaces_is_in_a_chunk_or_a_difference(&row, &align(&row));
    }

    #[test]
    fn both_sides_of_a_chunk_have_the_same_bytes_up_to_the_one_space(row in any_row()) {
        promises::both_sides_of_a_chunk_have_the_same_bytes_up_to_the_one_space(&row, &align(&row));
    }

    #[test]
    fn no_chunk_can_be_cut_in_two(row in any_row()) {
        promises::no_chunk_can_be_cut_in_two(&row, &align(&row));
    }

    #[test]
    fn a_chunk_begins_and_ends_with_bytes_and_says_whether_it_encloses_zero_width(row in any_row()) {
        promises::a_chunk_begins_and_ends_with_bytes_and_says_whether_it_encloses_zero_width(&row, &align(&row));
    }

    #[test]
    fn exact_pairs_have_equal_bytes(row in any_row()) {
        promises::exact_pairs_have_equal_bytes(&row, &align(&row));
    }

    #[test]
    fn space_pairs_have_equal_bytes_but_for_one_space(row in any_row()) {
        promises::space_pairs_have_equal_bytes_but_for_one_space(&row, &align(&row));
    }

    #[test]
    fn exact_and_space_pairs_are_the_chunks_of_one_and_one(row in any_row()) {
        promises::exact_and_space_pairs_are_the_chunks_of_one_and_one(&row, &align(&row));
    }

    #[test]
    fn role_pairs_are_specials_that_share_a_role_other_than_pad_and_unk(row in any_row()) {
        promises::role_pairs_are_specials_that_share_a_role_other_than_pad_and_unk(&row, &align(&row));
    }

    #[test]
    fn differences_are_in_order_and_apart_from_each_other_and_from_chunks(row in any_row()) {
        promises::differences_are_in_order_and_apart_from_each_other_and_from_chunks(&row, &align(&row));
    }

    #[test]
    fn a_common_ending_that_stands_nowhere_else_is_found_whole(
        row in any_row(),
        (teacher_tail, student_tail) in "[0-9]{32,80}".prop_flat_map(|text| {
            (tokenization(text.clone().into_bytes()), tokenization(text.into_bytes()))
        }),
    ) {
        // Digits stand in no head.
        let followed_by = |side: &Side, tail: &[Token]| {
            let head: Vec<Token> = side.columns().map(|column| side.token(column).clone()).collect();
            side_of(&[head, tail.to_vec()].concat())
        };
        let whole = Row {
            teacher: followed_by(&row.teacher, &teacher_tail),
            student: followed_by(&row.student, &student_tail),
        };
        let tails = Row { teacher: side_of(&teacher_tail), student: side_of(&student_tail) };
        let shift = |by: &Side, columns: Range<i32>| {
            let length = i32::try_from(by.ids.len()).expect("a short row");
            columns.start + length..columns.end + length
        };
        let expected: Vec<_> = ranges(&align(&tails).found.chunks)
            .into_iter()
            .map(|(teacher, student)| (shift(&row.teacher, teacher), shift(&row.student, student)))
            .collect();
        let found = ranges(&align(&whole).found.chunks);
        for chunk in &expected {
            prop_assert!(found.contains(chunk), "{chunk:?} of {expected:?} is not in {found:?}");
        }
    }

    #[test]
    fn an_opaque_token_always_lies_in_a_difference(row in any_row()) {
        promises::an_opaque_token_always_lies_in_a_difference(&row, &align(&row));
    }

    #[test]
    fn counts_are_the_selected_text_less_what_was_set_aside(row in any_row()) {
        promises::counts_are_the_selected_text_less_what_was_set_aside(&row, &align(&row));
    }

    #[test]
    fn two_tokenizations_of_one_text_have_no_difference(
        (teacher, student) in two_tokenizations()
    ) {
        let row = Row { teacher: side_of(&teacher), student: side_of(&student) };
        let batch = align(&row);
        prop_assert_eq!(ranges(&batch.found.differences), vec![]);
        prop_assert_eq!(batch.counts[0].space, 0);
        prop_assert_eq!(batch.counts[0].chunk_bytes, number(row.teacher.bytes(&row.teacher.columns()).len()));
    }

    #[test]
    fn a_vocabulary_without_repeated_bytes_aligned_with_itself_is_the_identity(
        texts in btree_set(text(1..4), 1..6),
        specials in vec(special(), 0..3),
        picks in vec(any::<Index>(), 0..24),
    ) {
        let vocabulary: Vec<Token> = texts.into_iter().map(Token::Text).chain(specials).collect();
        let ids = picks.iter().map(|pick| number(pick.index(vocabulary.len()))).collect();
        let side = Side { vocabulary, ids };
        let row = Row { teacher: side.clone(), student: side.clone() };
        promises::aligned_with_itself_it_is_the_identity(&side, &align(&row));
    }

    #[test]
    fn a_text_with_unknown_tokens_aligned_with_itself_has_all_others_in_pairs(
        tokens in vec(prop_oneof![8 => text(1..3).prop_map(Token::Text), 1 => Just(Token::Opaque)], 0..300),
    ) {
        let (teacher, student) = twice(&side_of(&tokens));
        let texts = teacher.columns().filter(|column| *teacher.token(*column) != Token::Opaque);
        let identity: Vec<_> = texts.map(|column| (column, column)).collect();
        let batch = align(&Row { teacher, student });
        prop_assert_eq!(pairs(&batch, PairKind::Exact), identity);
    }

    #[test]
    fn swapping_the_sides_swaps_chunks_differences_and_text_pairs(row in any_row()) {
        let swapped = align(&Row { teacher: row.student.clone(), student: row.teacher.clone() });
        promises::swapping_the_sides_swaps_chunks_differences_and_text_pairs(&align(&row), &swapped);
    }

    #[test]
    fn batch_equals_map_of_singles(
        row in any_row(),
        picks in vec((vec(any::<Index>(), 0..9), vec(any::<Index>(), 0..9)), 0..6),
    ) {
        let id = |side: &Side, pick: &Index| number(pick.index(side.vocabulary.len()));
        let ids = |side: &Side, picks: &[Index]| picks.iter().map(|pick| id(side, pick)).collect();
        let mut teacher: Vec<Vec<i64>> = picks.iter().map(|(picks, _)| ids(&row.teacher, picks)).collect();
        let mut student: Vec<Vec<i64>> = picks.iter().map(|(_, picks)| ids(&row.student, picks)).collect();
        teacher.push(row.teacher.ids.clone());
        student.push(row.student.ids.clone());
        let aligner = aligner(&row);
        let batch = align_rows(&aligner, &teacher, &student, 1).expect("known ids");
        for (at, (teacher, student)) in teacher.into_iter().zip(student).enumerate() {
            let single = align_rows(&aligner, &[teacher], &[student], 1).expect("known ids");
            prop_assert_eq!(single, row_of(&batch, at));
        }
    }

    #[test]
    fn every_integer_type_gives_the_same(row in any_row()) {
        let teacher: Vec<i32> = row.teacher.ids.iter().map(|id| i32::try_from(*id).expect("small")).collect();
        let student: Vec<u32> = row.student.ids.iter().map(|id| u32::try_from(*id).expect("small")).collect();
        let (teacher_offsets, student_offsets) = ([0, number(teacher.len())], [0, number(student.len())]);
        let found = align_batch(
            &aligner(&row),
            Rows { ids: Ids::I32(Values::Joined(&teacher)), offsets: &teacher_offsets, mask: None },
            Rows { ids: Ids::U32(Values::Joined(&student)), offsets: &student_offsets, mask: None },
            1,
        );
        prop_assert_eq!(found, Ok(align(&row)));
    }

    #[test]
    fn rows_in_an_array_each_give_the_same(row in any_row(), cuts in vec(any::<Index>(), 0..4)) {
        let rows = |side: &Side| -> Vec<Vec<i64>> {
            cuts.iter().map(|cut| side.ids[cut.index(side.ids.len() + 1)..].to_vec()).collect()
        };
        let (teacher, student) = (rows(&row.teacher), rows(&row.student));
        let teachers: Vec<&[i64]> = teacher.iter().map(Vec::as_slice).collect();
        let students: Vec<&[i64]> = student.iter().map(Vec::as_slice).collect();
        let found = align_batch(
            &aligner(&row),
            Rows { ids: Ids::I64(Values::Apart(&teachers)), offsets: &offsets(&teacher), mask: None },
            Rows { ids: Ids::I64(Values::Apart(&students)), offsets: &offsets(&student), mask: None },
            1,
        );
        prop_assert_eq!(found, align_rows(&aligner(&row), &teacher, &student, 1));
    }

    #[test]
    fn a_mask_that_selects_one_run_equals_the_run_alone(
        row in any_row(),
        before in 1..4_usize,
        after in 0..4_usize,
    ) {
        let padded = |side: &Side| [vec![-100; before], side.ids.clone(), vec![i64::MAX; after]].concat();
        let mask = |side: &Side| -> Vec<bool> {
            [vec![false; before], vec![true; side.ids.len()], vec![false; after]].concat()
        };
        if row.teacher.ids.is_empty() || row.student.ids.is_empty() {
            return Ok(()); // a mask selects no empty run
        }
        let (teacher, student) = (padded(&row.teacher), padded(&row.student));
        let (teacher_mask, student_mask) = (mask(&row.teacher), mask(&row.student));
        let (teacher_offsets, student_offsets) = ([0, number(teacher.len())], [0, number(student.len())]);
        let masked = align_batch(
            &aligner(&row),
            Rows { ids: Ids::I64(Values::Joined(&teacher)), offsets: &teacher_offsets, mask: Some(&teacher_mask) },
            Rows { ids: Ids::I64(Values::Joined(&student)), offsets: &student_offsets, mask: Some(&student_mask) },
            1,
        ).expect("ids that are not selected are not looked at");
        let alone = align(&row);
        let shift = i32::try_from(before).expect("small");
        let shifted: Vec<_> = alone.found.pairs.teacher.iter().map(|column| column + shift).collect();
        prop_assert_eq!(&masked.found.pairs.teacher, &shifted);
        prop_assert_eq!(&masked.found.pairs.kind, &alone.found.pairs.kind);
        prop_assert_eq!(&masked.found.encloses, &alone.found.encloses);
        prop_assert_eq!(masked.counts, alone.counts);
    }

    #[test]
    fn arbitrary_ids_align_or_name_the_first_that_is_unknown(
        row in any_row(),
        teacher in vec(any_id(), 0..12),
        student in vec(any_id(), 0..12),
    ) {
        let found = align_rows(&aligner(&row), from_ref(&teacher), from_ref(&student), 1);
        let unknown = |side: &Side, ids: &[i64]| {
            let size = number(side.vocabulary.len());
            ids.iter().copied().enumerate().find(|(_, id)| !(0..size).contains(id))
        };
        match (found, unknown(&row.teacher, &teacher), unknown(&row.student, &student)) {
            (Ok(_), None, None) => {}
            (Err(Error::UnknownId { row: 0, column, id, .. }), at_teacher, at_student) => {
                prop_assert!(at_teacher == Some((column, id)) || at_student == Some((column, id)));
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn arbitrary_offsets_and_masks_are_read_or_refused(
        row in any_row(),
        teacher in vec(-2..30_i64, 0..5),
        student in vec(-2..30_i64, 0..5),
        mask in vec(any::<bool>(), 0..30),
    ) {
        let found = align_batch(
            &aligner(&row),
            Rows { ids: Ids::I64(Values::Joined(&row.teacher.ids)), offsets: &teacher, mask: Some(&mask) },
            Rows { ids: Ids::I64(Values::Joined(&row.student.ids)), offsets: &student, mask: None },
            1,
        );
        if let Ok(batch) = found {
            prop_assert_eq!(batch.counts.len(), teacher.len().saturating_sub(1));
        }
    }

    #[test]
    fn spans_tile_the_known_bytes(side in random_side(), dummy_prefix in any::<bool>()) {
        let plain = side.vocabulary();
        let tokens: Vec<&[u8]> = side.vocabulary.iter().map(bytes_of).collect();
        let kinds: Vec<Kind> = side.vocabulary.iter().map(kind_of).collect();
        let roles = plain.roles().clone();
        let vocabulary = Vocabulary::new(&tokens, &kinds, roles, dummy_prefix).expect("small");
        let spans = vocabulary.spans(&side.ids).expect("known ids");
        let mut end = 0;
        for (span, column) in spans.iter().zip(side.columns()) {
            if *side.token(column) == Token::Opaque {
                prop_assert_eq!(*span, (-1, -1));
                continue;
            }
            prop_assert_eq!(span.0, end);
            end = span.1;
        }
        let bytes = number(side.bytes(&side.columns()).len());
        prop_assert!(end == bytes || (dummy_prefix && end == bytes - 1));
    }
}

fn any_id() -> impl Strategy<Value = i64> {
    let extreme = select(vec![-100, i64::MIN, i64::MAX, 1 << 32]);
    prop_oneof![8 => 0..4_i64, 2 => -2..9_i64, 1 => any::<i64>(), 1 => extreme]
}

// ---- Large rows ----------------------------------------------------------------------------------------

/// Many rows of very different lengths, so that they are cut into several blocks.
fn large_batch(row: &Row, lengths: &[usize]) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    let rows = |ids: &[i64]| {
        lengths.iter().map(|length| ids.iter().copied().cycle().take(*length).collect()).collect()
    };
    (rows(&row.teacher.ids), rows(&row.student.ids))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_number_of_threads_does_not_change_the_result(
        row in any_row(),
        lengths in vec(prop_oneof![Just(0_usize), 1..100_usize, 5_000..20_000_usize], 4..12),
    ) {
        let (teacher, student) = large_batch(&row, &lengths);
        let aligner = aligner(&row);
        let alone = align_rows(&aligner, &teacher, &student, 1);
        prop_assert!(alone.is_ok());
        prop_assert_eq!(align_rows(&aligner, &teacher, &student, 3), alone);
    }

    #[test]
    fn the_first_error_is_that_of_the_lowest_row_for_any_number_of_threads(
        bad in btree_set(0..6_usize, 1..6),
        threads in 1..4_usize,
    ) {
        let side = side_of(&[Token::Text(b"a".to_vec())]);
        let row = Row { teacher: side.clone(), student: side };
        let (teacher, mut student) = large_batch(&row, &[20_000; 6]);
        for at in &bad {
            student[*at][*at] = 7;
        }
        let lowest = *bad.first().expect("one at least");
        let error = align_rows(&aligner(&row), &teacher, &student, threads).expect_err("7 is unknown");
        let side = dskd::side::Side::Student;
        prop_assert_eq!(error, Error::UnknownId { side, row: lowest, column: lowest, id: 7, size: 2 });
    }
}

#[test]
fn a_special_at_a_place_where_nothing_agrees_after_all_finds_its_partner_at_the_next() {
    // Behind the first of the student's specials the one space is set aside, and then nothing agrees.
    let (common, tail) = ("0123456789abcdefghij", "klmnopqrstuvwxyzKLMNOPQRSTUVWXYZ");
    let (special, spaces) = (special_of("<a>"), piece("     "));
    let teacher = [
        piece("x"),
        piece(common),
        special.clone(),
        spaces.clone(),
        piece("     y"),
        piece(tail),
        piece("1"),
    ];
    let student = [
        piece(&format!("X{common}")),
        special.clone(),
        spaces.clone(),
        piece("    x"),
        special,
        spaces,
        piece("     y"),
        piece(tail),
        piece("2"),
    ];
    let batch = align(&Row { teacher: side_of(&teacher), student: side_of(&student) });
    assert_eq!(pairs(&batch, PairKind::Role), [(2, 4)]);
    assert_eq!(pairs(&batch, PairKind::Exact), [(3, 5), (4, 6), (5, 7)]);
    assert_eq!(ranges(&batch.found.differences), [(0..2, 0..4), (6..7, 8..9)]);
}

/// What a linear algorithm does in a moment even without optimisation, and a quadratic one does not.
fn ends_soon(teacher: Vec<Token>, student: Vec<Token>) -> Batch {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let batch = align(&Row { teacher: side_of(&teacher), student: side_of(&student) });
        sender.send(batch).is_ok()
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("a linear algorithm is done by now")
}

const MANY: usize = 300_000;

fn special_of(role: &'static str) -> Token {
    Token::Special(BTreeSet::from([role]))
}

fn piece(text: &str) -> Token {
    Token::Text(text.as_bytes().to_vec())
}

fn repeated(tokens: &[Token], times: usize) -> Vec<Token> {
    tokens.iter().cloned().cycle().take(tokens.len() * times).collect()
}

fn twice<T: Clone>(once: &T) -> (T, T) {
    (once.clone(), once.clone())
}

#[test]
fn specials_alternating_with_spaces_are_linear() {
    let (teacher, student) = twice(&repeated(&[special_of("<a>"), piece(" ")], MANY));
    let batch = ends_soon(teacher, student);
    assert_eq!((batch.counts[0].exact, batch.counts[0].role), (number(MANY), number(MANY)));
}

#[test]
fn specials_alternating_with_spaces_of_one_side_are_linear() {
    let teacher = repeated(&[special_of("<a>"), piece(" ")], MANY);
    let batch = ends_soon(teacher, repeated(&[special_of("<a>")], MANY));
    assert_eq!((batch.counts[0].teacher_bytes, batch.counts[0].role), (0, 1));
}

#[test]
fn specials_of_one_side_inside_a_run_of_the_other_are_linear() {
    let teacher = repeated(&[special_of("<a>"), piece(" ")], MANY);
    let batch = ends_soon(teacher, repeated(&[piece(" ")], MANY));
    assert_eq!(batch.counts[0].exact, number(MANY));
}

#[test]
fn specials_inside_one_long_run_of_spaces_are_linear() {
    let teacher = repeated(&[special_of("<a>"), piece(" "), special_of("<b>"), piece("  ")], MANY);
    let student = repeated(&[piece("   "), special_of("<c>")], MANY);
    let batch = ends_soon(teacher, student);
    assert_eq!(batch.counts[0].chunk_bytes, number(3 * MANY));
}

#[test]
fn specials_that_share_no_role_are_linear() {
    let teacher = repeated(&[special_of("<a>"), special_of("<b>")], MANY / 2);
    let student = repeated(&[special_of("<c>"), special_of("<d>")], MANY / 2);
    assert_eq!(ends_soon(teacher, student).counts[0].role, 0);
}

#[test]
fn specials_that_could_pair_only_with_the_first_of_the_other_side_are_linear() {
    let teacher = repeated(&[special_of("<a>"), special_of("<b>")], MANY / 2);
    let mut student = repeated(&[special_of("<c>"), special_of("<d>")], MANY / 2);
    student.insert(0, special_of("<a>"));
    assert_eq!(ends_soon(teacher, student).counts[0].role, 1);
}

#[test]
fn specials_that_could_pair_only_with_the_last_of_the_other_side_are_linear() {
    let teacher = repeated(&[special_of("<a>"), special_of("<b>")], MANY / 2);
    let mut student = repeated(&[special_of("<c>"), special_of("<d>")], MANY / 2);
    student.push(special_of("<b>"));
    assert_eq!(ends_soon(teacher, student).counts[0].role, 1);
}

#[test]
fn empty_tokens_are_linear() {
    let teacher = repeated(&[piece("a"), piece(""), piece(" "), special_of("<a>")], MANY / 2);
    let student = repeated(&[piece("a"), piece(" "), piece("")], MANY / 2);
    let batch = ends_soon(teacher, student);
    assert_eq!(batch.counts[0].exact, number(MANY));
}

#[test]
fn empty_tokens_alone_are_linear() {
    let mut teacher = repeated(&[piece(""), special_of("<a>")], MANY);
    teacher.push(piece("a"));
    let batch = ends_soon(teacher, vec![piece(" a")]);
    assert_eq!(batch.counts[0].space, 1);
}

#[test]
fn one_chunk_over_a_whole_row_is_linear() {
    let mut teacher = repeated(&[piece("aa")], MANY);
    teacher.push(piece("a"));
    let mut student = vec![piece("a")];
    student.extend(repeated(&[piece("aa")], MANY));
    let batch = ends_soon(teacher, student);
    assert_eq!(ranges(&batch.found.chunks).len(), 1);
}

#[test]
fn a_run_of_spaces_over_a_whole_row_is_linear() {
    let batch = ends_soon(repeated(&[piece(" ")], MANY), repeated(&[piece(" ")], MANY + 1));
    assert_eq!((batch.counts[0].exact, batch.counts[0].student_bytes), (number(MANY), number(MANY)));
}

#[test]
fn the_same_token_many_times_is_linear() {
    let (teacher, student) = twice(&repeated(&[piece("a")], 1_000_000));
    assert_eq!(ends_soon(teacher, student).counts[0].exact, 1_000_000);
}

#[test]
fn texts_that_never_agree_are_linear() {
    let batch = ends_soon(repeated(&[piece("a")], 1_000_000), repeated(&[piece("b")], 1_000_000));
    assert_eq!(ranges(&batch.found.differences), [(0..1_000_000, 0..1_000_000)]);
}

#[test]
fn texts_that_agree_in_short_runs_everywhere_are_linear() {
    // Each period has the other's letters, in another order: runs of one and two bytes at every place.
    let batch = ends_soon(
        repeated(&[piece("a"), piece("b"), piece("c")], MANY),
        repeated(&[piece("a"), piece("c"), piece("b")], MANY),
    );
    assert_eq!(batch.counts[0].role, 0);
}

#[test]
fn a_difference_in_every_word_is_linear() {
    let words = |odd: &str| -> Vec<Token> {
        repeated(&[piece(" never"), piece(" the"), piece(odd), piece(" same"), piece(" word")], MANY / 5)
    };
    let batch = ends_soon(words(" x"), words(" yz"));
    assert!(batch.counts[0].exact >= number(MANY / 5 * 4 - 4), "{:?}", batch.counts[0]);
}

#[test]
fn a_period_of_which_one_side_has_less_is_linear() {
    let mut teacher = repeated(&[piece("ab"), piece("ba"), piece(" ")], MANY);
    teacher.insert(0, piece("x"));
    let mut student = repeated(&[piece("ab"), piece("ba"), piece(" ")], MANY / 2);
    student.insert(0, piece("y"));
    let batch = ends_soon(teacher, student);
    assert_eq!(batch.counts[0].exact, number(MANY / 2 * 3));
}

#[test]
fn opaque_tokens_between_all_others_are_linear() {
    let (teacher, student) = twice(&repeated(&[piece("some text"), Token::Opaque], MANY));
    assert_eq!(ends_soon(teacher, student).counts[0].exact, number(MANY));
}

#[test]
fn long_runs_without_a_shared_boundary_are_linear() {
    // Twenty bytes in every thirty are the same, but the tokens are far longer.
    let text = |other: &str| -> String {
        let block = |number: usize| format!("block number {:07}{other}", number * 7_919 % 100_003);
        (0..MANY / 30).map(block).collect()
    };
    let tokens = |text: String, size: usize| -> Vec<Token> {
        text.into_bytes().chunks(size).map(|bytes| Token::Text(bytes.to_vec())).collect()
    };
    let batch = ends_soon(tokens(text("aaaaaaX"), 60_001), tokens(text("aaaaaaaaaY"), 60_000));
    assert_eq!(batch.counts[0].exact, 0);
}

#[test]
fn blocks_in_another_order_are_linear() {
    // Of ten thousand blocks that stand once on each side, the orders have only few neighbours in common.
    let block = |number: usize| piece(&format!("block number {number:05} and its thirty-two bytes;"));
    let blocks = 10_007;
    let teacher: Vec<Token> = (0..blocks).map(block).collect();
    let student: Vec<Token> = (0..blocks).map(|index| block(index * 5_003 % blocks)).collect();
    // Most bytes agree where the tokens do not: the numbers aside, each block is like any other.
    let batch = ends_soon(teacher, student);
    assert_eq!(batch.counts[0].role, 0);
}
