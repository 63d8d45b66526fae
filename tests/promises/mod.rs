//! What alignment promises of any row, as functions of the row and of what was found: `properties.rs` asks
//! them of random rows, the fuzz targets of rows that coverage led to.

#![allow(dead_code, reason = "each of those who share this uses a part of it")]
#![allow(missing_docs, reason = "a promise is named as a sentence")]

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use dskd::align::{Aligner, PairKind, Ranges};
use dskd::batch::{Ids, Rows, Values};
use dskd::error::Error;
use dskd::vocabulary::{Kind, Roles, Vocabulary};

use crate::columns::{Batch, align_batch};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    Text(Vec<u8>),
    /// Text of a user-defined token, behind which a dummy prefix may stand.
    UserDefined(Vec<u8>),
    Special(BTreeSet<&'static str>),
    Opaque,
}

/// One side of a row: what the tokens are, and the ids that stand there.
#[derive(Clone, Debug)]
pub struct Side {
    pub vocabulary: Vec<Token>,
    pub ids: Vec<i64>,
}

#[derive(Clone, Debug)]
pub struct Row {
    pub teacher: Side,
    pub student: Side,
}

/// A side of these tokens; its vocabulary has one more, for it is never empty.
pub fn side_of(tokens: &[Token]) -> Side {
    let mut vocabulary = vec![Token::Text(b" ".to_vec())];
    let mut known = HashMap::from([(vocabulary[0].clone(), 0)]);
    let mut ids = Vec::new();
    for token in tokens {
        let id = *known.entry(token.clone()).or_insert(vocabulary.len());
        if id == vocabulary.len() {
            vocabulary.push(token.clone());
        }
        ids.push(number(id));
    }
    Side { vocabulary, ids }
}

impl Side {
    pub fn vocabulary(&self) -> Arc<Vocabulary> {
        let tokens: Vec<&[u8]> = self.vocabulary.iter().map(bytes_of).collect();
        let kinds: Vec<Kind> = self.vocabulary.iter().map(kind_of).collect();
        let roles: Roles = self.vocabulary.iter().enumerate().filter_map(roles_of).collect();
        Arc::new(Vocabulary::new(&tokens, &kinds, roles, true).expect("a small vocabulary"))
    }

    pub fn token(&self, column: i32) -> &Token {
        &self.vocabulary[index(self.ids[index(column)])]
    }

    pub fn tokens(&self, columns: &Range<i32>) -> Vec<&Token> {
        columns.clone().map(|column| self.token(column)).collect()
    }

    pub fn bytes(&self, columns: &Range<i32>) -> Vec<u8> {
        self.tokens(columns).into_iter().flat_map(bytes_of).copied().collect()
    }

    /// The columns in none of these ranges.
    pub fn outside(&self, held: Vec<Range<i32>>) -> Vec<i32> {
        let mut inside = vec![false; self.ids.len()];
        for range in held {
            inside[index(range.start)..index(range.end)].fill(true);
        }
        self.columns().filter(|column| !inside[index(*column)]).collect()
    }

    pub fn columns(&self) -> Range<i32> {
        0..i32::try_from(self.ids.len()).expect("a short row")
    }
}

pub fn bytes_of(token: &Token) -> &[u8] {
    if let Token::Text(bytes) | Token::UserDefined(bytes) = token { bytes } else { &[] }
}

pub fn kind_of(token: &Token) -> Kind {
    match token {
        Token::Text(_) => Kind::Normal,
        Token::UserDefined(_) => Kind::UserDefined,
        Token::Special(_) => Kind::Special,
        Token::Opaque => Kind::Opaque,
    }
}

pub fn roles_of((id, token): (usize, &Token)) -> Option<(u32, BTreeSet<String>)> {
    let Token::Special(roles) = token else { return None };
    Some((u32::try_from(id).expect("small"), roles.iter().map(|role| (*role).to_owned()).collect()))
}

/// Whether two specials can pair.
pub fn share_a_role(one: &Token, other: &Token) -> bool {
    let (Token::Special(one), Token::Special(other)) = (one, other) else { return false };
    one.intersection(other).any(|role| !["pad", "unk"].contains(role))
}

pub fn aligner(row: &Row) -> Aligner {
    Aligner::new(row.teacher.vocabulary(), row.student.vocabulary())
}

pub fn align(row: &Row) -> Batch {
    let (teacher, student) = ([row.teacher.ids.clone()], [row.student.ids.clone()]);
    align_rows(&aligner(row), &teacher, &student, 1).expect("all ids are in the vocabulary")
}

pub fn align_rows(
    aligner: &Aligner,
    teacher: &[Vec<i64>],
    student: &[Vec<i64>],
    threads: usize,
) -> Result<Batch, Error> {
    let (teacher_ids, student_ids) = (teacher.concat(), student.concat());
    let (teacher_offsets, student_offsets) = (offsets(teacher), offsets(student));
    align_batch(
        aligner,
        Rows { ids: Ids::I64(Values::Joined(&teacher_ids)), offsets: &teacher_offsets, mask: None },
        Rows { ids: Ids::I64(Values::Joined(&student_ids)), offsets: &student_offsets, mask: None },
        threads,
    )
}

pub fn offsets(rows: &[Vec<i64>]) -> Vec<i64> {
    let ends = rows.iter().scan(0, |end, row| {
        *end += number(row.len());
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

pub fn ranges(ranges: &Ranges) -> Vec<(Range<i32>, Range<i32>)> {
    let teachers = ranges.teacher_start.iter().zip(&ranges.teacher_end);
    let students = ranges.student_start.iter().zip(&ranges.student_end);
    teachers
        .zip(students)
        .map(|(teacher, student)| (*teacher.0..*teacher.1, *student.0..*student.1))
        .collect()
}

pub fn pairs(batch: &Batch, kind: PairKind) -> Vec<(i32, i32)> {
    let pairs = &batch.found.pairs;
    let both = pairs.teacher.iter().copied().zip(pairs.student.iter().copied());
    both.zip(&pairs.kind).filter(|(_, other)| **other == kind as u8).map(|(pair, _)| pair).collect()
}

pub fn number(index: usize) -> i64 {
    i64::try_from(index).expect("small")
}

pub fn index<T: TryInto<usize>>(number: T) -> usize {
    number.try_into().ok().expect("not negative")
}

/// Equal bytes, or equal but for one leading space.
pub fn equal_but_for_one_space(one: &[u8], other: &[u8]) -> bool {
    one == other || one.strip_prefix(b" ") == Some(other) || other.strip_prefix(b" ") == Some(one)
}

/// One row of a batch, as a batch of that row alone.
pub fn row_of(batch: &Batch, row: usize) -> Batch {
    let bounds = |offsets: &[i64]| index(offsets[row])..index(offsets[row + 1]);
    let (pairs, chunks) = (bounds(&batch.pair_offsets), bounds(&batch.chunk_offsets));
    let differences = bounds(&batch.difference_offsets);
    let mut one = Batch {
        pair_offsets: vec![0, number(pairs.len())],
        chunk_offsets: vec![0, number(chunks.len())],
        difference_offsets: vec![0, number(differences.len())],
        counts: vec![batch.counts[row]],
        ..Batch::default()
    };
    one.found.pairs.teacher = batch.found.pairs.teacher[pairs.clone()].to_vec();
    one.found.pairs.student = batch.found.pairs.student[pairs.clone()].to_vec();
    one.found.pairs.kind = batch.found.pairs.kind[pairs].to_vec();
    one.found.encloses = batch.found.encloses[chunks.clone()].to_vec();
    one.found.chunks = cut(&batch.found.chunks, &chunks);
    one.found.differences = cut(&batch.found.differences, &differences);
    one
}

pub fn cut(ranges: &Ranges, at: &Range<usize>) -> Ranges {
    Ranges {
        teacher_start: ranges.teacher_start[at.clone()].to_vec(),
        teacher_end: ranges.teacher_end[at.clone()].to_vec(),
        student_start: ranges.student_start[at.clone()].to_vec(),
        student_end: ranges.student_end[at.clone()].to_vec(),
    }
}

// ---- What holds of every row ---------------------------------------------------------------------------

/// All promises below, of a row that was aligned alone.
pub fn all_are_kept(row: &Row, batch: &Batch) {
    pairs_are_monotone(row, batch);
    chunks_are_in_order_and_disjoint_and_never_empty(row, batch);
    differences_are_in_order_and_apart_from_each_other_and_from_chunks(row, batch);
    every_byte_but_the_one_spaces_is_in_a_chunk_or_a_difference(row, batch);
    both_sides_of_a_chunk_have_the_same_bytes_up_to_the_one_space(row, batch);
    no_chunk_can_be_cut_in_two(row, batch);
    a_chunk_begins_and_ends_with_bytes_and_says_whether_it_encloses_zero_width(row, batch);
    exact_pairs_have_equal_bytes(row, batch);
    space_pairs_have_equal_bytes_but_for_one_space(row, batch);
    exact_and_space_pairs_are_the_chunks_of_one_and_one(row, batch);
    role_pairs_are_specials_that_share_a_role_other_than_pad_and_unk(row, batch);
    an_opaque_token_always_lies_in_a_difference(row, batch);
    counts_are_the_selected_text_less_what_was_set_aside(row, batch);
}

pub fn pairs_are_monotone(_: &Row, batch: &Batch) {
    let pairs = &batch.found.pairs;
    assert!(pairs.teacher.is_sorted_by(|one, next| one < next), "{pairs:?}");
    assert!(pairs.student.is_sorted_by(|one, next| one < next), "{pairs:?}");
    assert!(pairs.teacher.len() == pairs.kind.len() && pairs.student.len() == pairs.kind.len());
}

pub fn chunks_are_in_order_and_disjoint_and_never_empty(_: &Row, batch: &Batch) {
    let chunks = ranges(&batch.found.chunks);
    assert!(chunks.iter().all(|(teacher, student)| !teacher.is_empty() && !student.is_empty()));
    assert_in_order(&chunks);
}

pub fn differences_are_in_order_and_apart_from_each_other_and_from_chunks(_: &Row, batch: &Batch) {
    let mut all = ranges(&batch.found.chunks);
    all.extend(ranges(&batch.found.differences));
    all.sort_by_key(|(teacher, student)| (teacher.start + student.start, teacher.end + student.end));
    assert_in_order(&all);
    let differences = ranges(&batch.found.differences);
    assert!(differences.iter().all(|(teacher, student)| !(teacher.is_empty() && student.is_empty())));
}

fn assert_in_order(ranges: &[(Range<i32>, Range<i32>)]) {
    for neighbours in ranges.windows(2) {
        assert!(neighbours[0].0.end <= neighbours[1].0.start, "{neighbours:?}");
        assert!(neighbours[0].1.end <= neighbours[1].1.start, "{neighbours:?}");
    }
}

pub fn every_byte_but_the_one_spaces_is_in_a_chunk_or_a_difference(row: &Row, batch: &Batch) {
    let (teachers, students): (Vec<_>, Vec<_>) =
        [&batch.found.chunks, &batch.found.differences].into_iter().flat_map(ranges).unzip();
    for (side, held) in [(&row.teacher, teachers), (&row.student, students)] {
        let left = side.outside(held);
        let bytes = left.iter().flat_map(|column| bytes_of(side.token(*column)));
        assert!(bytes.copied().all(|byte| byte == b' '), "{left:?} of {batch:?}");
    }
}

pub fn both_sides_of_a_chunk_have_the_same_bytes_up_to_the_one_space(row: &Row, batch: &Batch) {
    let mut bytes = 0;
    for (teacher, student) in ranges(&batch.found.chunks) {
        let (teacher, student) = (row.teacher.bytes(&teacher), row.student.bytes(&student));
        assert!(equal_but_for_one_space(&teacher, &student), "{teacher:?} {student:?}");
        bytes += number(teacher.len().min(student.len()));
    }
    assert_eq!(batch.counts[0].chunk_bytes, bytes);
}

pub fn no_chunk_can_be_cut_in_two(row: &Row, batch: &Batch) {
    for (teachers, students) in ranges(&batch.found.chunks) {
        // Measured from the end: the one space stands in the first token.
        let inner = |side: &Side, columns: &Range<i32>| -> BTreeSet<usize> {
            let from_end = columns.clone().skip(1).rev().scan(0, |length, column| {
                *length += bytes_of(side.token(column)).len();
                Some(*length)
            });
            from_end.collect()
        };
        let (teacher, student) = (inner(&row.teacher, &teachers), inner(&row.student, &students));
        assert!(teacher.is_disjoint(&student), "{teachers:?} {students:?}");
    }
}

pub fn a_chunk_begins_and_ends_with_bytes_and_says_whether_it_encloses_zero_width(row: &Row, batch: &Batch) {
    for ((teacher, student), encloses) in ranges(&batch.found.chunks).iter().zip(&batch.found.encloses) {
        let (teacher, student) = (row.teacher.tokens(teacher), row.student.tokens(student));
        for tokens in [&teacher, &student] {
            assert!(!bytes_of(tokens[0]).is_empty());
            assert!(!bytes_of(tokens[tokens.len() - 1]).is_empty());
        }
        let zero_width = teacher.iter().chain(&student).any(|token| bytes_of(token).is_empty());
        assert_eq!(*encloses, zero_width);
    }
}

pub fn exact_pairs_have_equal_bytes(row: &Row, batch: &Batch) {
    for (teacher, student) in pairs(batch, PairKind::Exact) {
        assert_eq!(bytes_of(row.teacher.token(teacher)), bytes_of(row.student.token(student)));
        assert!(!bytes_of(row.teacher.token(teacher)).is_empty());
    }
}

pub fn space_pairs_have_equal_bytes_but_for_one_space(row: &Row, batch: &Batch) {
    for (teacher, student) in pairs(batch, PairKind::Space) {
        let bytes = (bytes_of(row.teacher.token(teacher)), bytes_of(row.student.token(student)));
        assert!(bytes.0 != bytes.1 && equal_but_for_one_space(bytes.0, bytes.1), "{bytes:?}");
        assert!(!bytes.0.is_empty() && !bytes.1.is_empty());
    }
}

pub fn exact_and_space_pairs_are_the_chunks_of_one_and_one(_: &Row, batch: &Batch) {
    let mut found = pairs(batch, PairKind::Exact);
    found.extend(pairs(batch, PairKind::Space));
    found.sort_unstable();
    let single = |(teacher, student): &(Range<i32>, Range<i32>)| teacher.len() == 1 && student.len() == 1;
    let chunks = ranges(&batch.found.chunks).into_iter().filter(single);
    let expected: Vec<_> = chunks.map(|(teacher, student)| (teacher.start, student.start)).collect();
    assert_eq!(found, expected);
}

pub fn role_pairs_are_specials_that_share_a_role_other_than_pad_and_unk(row: &Row, batch: &Batch) {
    for (teacher, student) in pairs(batch, PairKind::Role) {
        let (teacher, student) = (row.teacher.token(teacher), row.student.token(student));
        assert!(share_a_role(teacher, student), "{teacher:?} {student:?}");
    }
}

pub fn an_opaque_token_always_lies_in_a_difference(row: &Row, batch: &Batch) {
    let (teachers, students): (Vec<_>, Vec<_>) = ranges(&batch.found.differences).into_iter().unzip();
    for (side, held) in [(&row.teacher, teachers), (&row.student, students)] {
        assert!(side.outside(held).iter().all(|column| *side.token(*column) != Token::Opaque), "{batch:?}");
    }
}

pub fn counts_are_the_selected_text_less_what_was_set_aside(row: &Row, batch: &Batch) {
    let counts = batch.counts[0];
    let count = |side: &Side, counted: fn(&Token) -> bool| {
        number(side.columns().filter(|column| counted(side.token(*column))).count())
    };
    let bytes = |side: &Side| number(side.bytes(&side.columns()).len());
    let opens = |token: &Token| matches!(kind_of(token), Kind::Special | Kind::UserDefined);
    // One space for the start, one for every special or user-defined token and one for every difference, at most.
    let differences = number(batch.found.differences.teacher_start.len());
    let most = 1 + differences + count(&row.teacher, opens) + count(&row.student, opens);
    let aside = bytes(&row.teacher) - counts.teacher_bytes + bytes(&row.student) - counts.student_bytes;
    assert!((0..=most).contains(&aside), "{aside} bytes set aside");
    assert!(counts.teacher_bytes <= bytes(&row.teacher));
    assert!(counts.student_bytes <= bytes(&row.student));
    assert!(counts.chunk_bytes <= counts.teacher_bytes.min(counts.student_bytes));
    let opaque = |token: &Token| *token == Token::Opaque;
    assert_eq!(counts.teacher_opaque, count(&row.teacher, opaque));
    assert_eq!(counts.student_opaque, count(&row.student, opaque));
    let pairs = |kind| number(pairs(batch, kind).len());
    assert_eq!(counts.exact, pairs(PairKind::Exact));
    assert_eq!(counts.role, pairs(PairKind::Role));
    assert_eq!(counts.space, pairs(PairKind::Space));
}

/// Of two rows aligned alone, the second with the sides of the first swapped.
pub fn swapping_the_sides_swaps_chunks_differences_and_text_pairs(found: &Batch, swapped: &Batch) {
    let swap = |kind| -> Vec<_> {
        pairs(swapped, kind).into_iter().map(|(teacher, student)| (student, teacher)).collect()
    };
    let swap_ranges =
        |held| -> Vec<_> { ranges(held).into_iter().map(|(teacher, student)| (student, teacher)).collect() };
    assert_eq!(pairs(found, PairKind::Exact), swap(PairKind::Exact));
    assert_eq!(pairs(found, PairKind::Space), swap(PairKind::Space));
    assert_eq!(ranges(&found.found.chunks), swap_ranges(&swapped.found.chunks));
    assert_eq!(ranges(&found.found.differences), swap_ranges(&swapped.found.differences));
    assert_eq!(found.found.encloses, swapped.found.encloses);
}

/// Of a row that was aligned with itself.
pub fn aligned_with_itself_it_is_the_identity(side: &Side, batch: &Batch) {
    let texts = side.columns().filter(|column| !bytes_of(side.token(*column)).is_empty());
    let identity: Vec<_> = texts.map(|column| (column, column)).collect();
    assert_eq!(pairs(batch, PairKind::Exact), identity);
    assert!(pairs(batch, PairKind::Role).iter().all(|(teacher, student)| teacher == student));
    assert_eq!(ranges(&batch.found.differences), vec![]);
}
