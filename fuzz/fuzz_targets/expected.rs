//! What results must be, said slowly: a row from its segments, and two tokenizations of one text from the
//! boundaries that they share.

#![allow(dead_code, reason = "each target uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;
use std::ops::Range;

use dskd::align::{Aligner, Counts, PairKind, Ranges};

use crate::columns::Batch;
use crate::promises::{Row, Side, Token, align_rows, bytes_of, number, share_a_role};

/// A row of segments, each the ids of a side; what one side has more stands against nothing.
pub struct Segments<'a> {
    pub teacher: Vec<(usize, &'a [i64])>,
    pub student: Vec<(usize, &'a [i64])>,
}

/// A batch of no rows.
pub fn nothing() -> Batch {
    Batch { pair_offsets: vec![0], chunk_offsets: vec![0], difference_offsets: vec![0], ..Batch::default() }
}

/// The row put together from its segments, each aligned alone; `alone` sees those that have a counterpart.
pub fn row_of_segments(
    aligner: &Aligner,
    segments: &Segments<'_>,
    mut alone: impl FnMut(&[i64], &[i64], &Batch),
) -> Batch {
    let mut row = nothing();
    let mut counts = Counts::default();
    let shared = segments.teacher.len().min(segments.student.len());
    for ((teacher_column, teacher), (student_column, student)) in
        segments.teacher.iter().zip(&segments.student)
    {
        let found = align_rows(aligner, &[teacher.to_vec()], &[student.to_vec()], 1).expect("known ids");
        alone(teacher, student, &found);
        add_counts(&mut counts, &found.counts[0]);
        append(&mut row, &shifted(found, *teacher_column, *student_column));
    }
    let end = |segments: &[(usize, &[i64])]| segments.last().map_or(0, |(column, ids)| column + ids.len());
    let (teacher_end, student_end) = (end(&segments.teacher), end(&segments.student));
    for (column, ids) in &segments.teacher[shared..] {
        add_counts(&mut counts, &counts_against_nothing(aligner, ids, &[]));
        push_surplus(&mut row.found.differences, *column..column + ids.len(), student_end..student_end);
    }
    for (column, ids) in &segments.student[shared..] {
        add_counts(&mut counts, &counts_against_nothing(aligner, &[], ids));
        push_surplus(&mut row.found.differences, teacher_end..teacher_end, *column..column + ids.len());
    }
    counts.segment_mismatch = i64::from(segments.teacher.len() != segments.student.len());
    end_row(&mut row, counts);
    row
}

fn counts_against_nothing(aligner: &Aligner, teacher: &[i64], student: &[i64]) -> Counts {
    let count = |ids: &[i64], counted: &dyn Fn(u32) -> usize| -> i64 {
        number(ids.iter().map(|id| counted(u32::try_from(*id).expect("a known id"))).sum())
    };
    let (of_teacher, of_student) = (aligner.teacher(), aligner.student());
    let opaque = dskd::vocabulary::Kind::Opaque;
    Counts {
        teacher_tokens: count(teacher, &|id| usize::from(!of_teacher.bytes(id).is_empty())),
        student_tokens: count(student, &|id| usize::from(!of_student.bytes(id).is_empty())),
        teacher_bytes: count(teacher, &|id| of_teacher.bytes(id).len()),
        student_bytes: count(student, &|id| of_student.bytes(id).len()),
        teacher_opaque: count(teacher, &|id| usize::from(of_teacher.kind(id) == opaque)),
        student_opaque: count(student, &|id| usize::from(of_student.kind(id) == opaque)),
        ..Counts::default()
    }
}

pub fn add_counts(to: &mut Counts, other: &Counts) {
    to.teacher_tokens += other.teacher_tokens;
    to.student_tokens += other.student_tokens;
    to.teacher_bytes += other.teacher_bytes;
    to.student_bytes += other.student_bytes;
    to.chunk_bytes += other.chunk_bytes;
    to.teacher_opaque += other.teacher_opaque;
    to.student_opaque += other.student_opaque;
    to.exact += other.exact;
    to.role += other.role;
    to.space += other.space;
    to.segment_mismatch += other.segment_mismatch;
}

/// What was found in one row, that many columns further on.
pub fn shifted(mut row: Batch, teacher: usize, student: usize) -> Batch {
    let add = |columns: &mut Vec<i32>, by: usize| {
        let by = i32::try_from(by).expect("a short row");
        columns.iter_mut().for_each(|column| *column += by);
    };
    let found = &mut row.found;
    add(&mut found.pairs.teacher, teacher);
    add(&mut found.pairs.student, student);
    for ranges in [&mut found.chunks, &mut found.differences] {
        add(&mut ranges.teacher_start, teacher);
        add(&mut ranges.teacher_end, teacher);
        add(&mut ranges.student_start, student);
        add(&mut ranges.student_end, student);
    }
    row
}

/// Puts what was found in one row behind what was found in the same row so far.
pub fn append(row: &mut Batch, other: &Batch) {
    row.found.append(&other.found);
}

pub fn end_row(row: &mut Batch, counts: Counts) {
    row.pair_offsets.push(number(row.found.pairs.kind.len()));
    row.chunk_offsets.push(number(row.found.encloses.len()));
    row.difference_offsets.push(number(row.found.differences.teacher_start.len()));
    row.counts.push(counts);
}

/// A row without a mask has one segment, if an empty one, and where nothing is there is no difference.
fn push_surplus(ranges: &mut Ranges, teacher: Range<usize>, student: Range<usize>) {
    if !(teacher.is_empty() && student.is_empty()) {
        push(ranges, teacher, student);
    }
}

fn push(ranges: &mut Ranges, teacher: Range<usize>, student: Range<usize>) {
    let column = |at: usize| i32::try_from(at).expect("a short row");
    ranges.teacher_start.push(column(teacher.start));
    ranges.teacher_end.push(column(teacher.end));
    ranges.student_start.push(column(student.start));
    ranges.student_end.push(column(student.end));
}

// ---- Two tokenizations of one text ---------------------------------------------------------------------

/// What is found in two tokenizations of one text: between two neighbouring common boundaries lies a chunk,
/// at each of them the specials pair with which the place opens. Counts are not worked out.
pub fn of_one_text(row: &Row) -> Batch {
    let (teachers, students) = (tokens(&row.teacher), tokens(&row.student));
    let (teacher_ends, student_ends) = (ends(&teachers), ends(&students));
    let mut batch = nothing();
    let mut before = (0, 0);
    // A place is a common boundary: the tokens behind which the text is that long.
    for position in common_positions(&teacher_ends, &student_ends) {
        let after = (teacher_ends[&position], student_ends[&position]);
        if position > 0 {
            let teacher = first_text(&teachers, before.0)..after.0;
            let student = first_text(&students, before.1)..after.1;
            let zero_width = |tokens: &[&Token]| tokens.iter().any(|token| bytes_of(token).is_empty());
            batch
                .found
                .encloses
                .push(zero_width(&teachers[teacher.clone()]) || zero_width(&students[student.clone()]));
            if teacher.len() == 1 && student.len() == 1 {
                push_pair(&mut batch, teacher.start, student.start, PairKind::Exact);
            }
            push(&mut batch.found.chunks, teacher, student);
        }
        pair_roles(&teachers, after.0, &students, after.1, &mut batch);
        before = after;
    }
    batch
}

fn tokens(side: &Side) -> Vec<&Token> {
    side.tokens(&side.columns())
}

/// For every length of text at which a token with bytes ends, and for none, the number of tokens up to there.
fn ends(tokens: &[&Token]) -> BTreeMap<usize, usize> {
    let mut length = 0;
    let end = |(at, token): (usize, &&Token)| {
        length += bytes_of(token).len();
        (!bytes_of(token).is_empty()).then_some((length, at + 1))
    };
    once((0, 0)).chain(tokens.iter().enumerate().filter_map(end)).collect()
}

pub fn common_positions(
    teacher: &BTreeMap<usize, usize>,
    student: &BTreeMap<usize, usize>,
) -> BTreeSet<usize> {
    teacher.keys().copied().filter(|position| student.contains_key(position)).collect()
}

fn first_text(tokens: &[&Token], from: usize) -> usize {
    (from..tokens.len()).find(|at| !bytes_of(tokens[*at]).is_empty()).expect("a chunk has bytes")
}

/// From left to right on the teacher's side, each with the first student special behind the last pair that
/// shares a role; of a run of one repeated special only the first takes part.
fn pair_roles(teachers: &[&Token], from: usize, students: &[&Token], others_from: usize, batch: &mut Batch) {
    let (teacher_specials, student_specials) = (specials(teachers, from), specials(students, others_from));
    let mut next = 0;
    for teacher in teacher_specials {
        let partner = (next..student_specials.len())
            .find(|index| share_a_role(teachers[teacher], students[student_specials[*index]]));
        if let Some(partner) = partner {
            push_pair(batch, teacher, student_specials[partner], PairKind::Role);
            next = partner + 1;
        }
    }
}

fn specials(tokens: &[&Token], from: usize) -> Vec<usize> {
    let run = (from..tokens.len()).take_while(|at| matches!(tokens[*at], Token::Special(_)));
    run.filter(|at| *at == from || tokens[at - 1] != tokens[*at]).collect()
}

fn push_pair(batch: &mut Batch, teacher: usize, student: usize, kind: PairKind) {
    let pairs = &mut batch.found.pairs;
    pairs.teacher.push(i32::try_from(teacher).expect("a short row"));
    pairs.student.push(i32::try_from(student).expect("a short row"));
    pairs.kind.push(kind as u8);
}
