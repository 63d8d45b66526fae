//! One text cut twice into tokens: what is found equals the common boundaries, wherever tokens and
//! differences lie, and does not depend on what stands before it, beside it or in the batch before.
//!
//! Lengths are chosen around the powers of two at which a block or a window may end, tokens are up to three
//! such blocks long, and a row's difference is moved over the edges by a head of any length.

#![no_main]

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use columns::{Batch, align_batch};
use dskd::align::{Aligner, PairKind};
use dskd::batch::{Ids, Rows, Values};
use dskd::error::Error;
use expected::{Segments, append, end_row, nothing, of_one_text, row_of_segments, shifted};
use libfuzzer_sys::fuzz_target;
use many::Many;
use promises::{
    Row, Side, Token, align, align_rows, aligner, bytes_of, number, pairs, ranges, row_of, side_of,
};

#[path = "../../tests/columns/mod.rs"]
mod columns;
mod expected;
mod many;
#[path = "../../tests/promises/mod.rs"]
mod promises;

const MOST_ROWS: usize = 2;
const MOST_BYTES: usize = 40_000;
const MOST_TOKENS: usize = 12_000;

#[derive(Arbitrary, Debug)]
struct Input {
    rows: Many<Plan, MOST_ROWS>,
    /// Whether they are segments of one row, with junk between them.
    segments: bool,
    junk: i64,
    bad_row: u8,
}

#[derive(Arbitrary, Debug)]
struct Plan {
    head: Length,
    head_cuts: [Many<Cut, 20>; 2],
    text: Many<u8, 64>,
    length: Length,
    changing: bool,
    cuts: [Many<Cut, 40>; 2],
    edits: Many<(Edit, u16), 8>,
    opaque: bool,
}

/// A number of bytes: some blocks and a few more or less.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Short(u8),
    Medium(u8, u8),
    Around { blocks: u8, log: u8, more: i8 },
}

/// A token's length in bytes, and what of zero width stands behind it.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Cut(u8, u8);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Edit {
    Replace { byte: u8, at: u8 },
    ReplaceAt(Length, u8),
    Insert(u8),
    Remove,
    Space,
    Opaque,
}

impl Length {
    fn bytes(self) -> usize {
        match self {
            Self::Short(bytes) => usize::from(bytes),
            Self::Medium(bytes, more) => 2 * usize::from(bytes) + usize::from(more),
            // The core's window is about 8 KB.
            Self::Around { blocks, log, more } => {
                let block = [1024, 4096, 8192, 8192, 16_384][usize::from(log) % 5];
                (block * (1 + usize::from(blocks % 4)))
                    .saturating_add_signed(isize::from(more / 4))
                    .min(MOST_BYTES)
            }
        }
    }
}

impl Cut {
    fn bytes(self) -> usize {
        match self.0 {
            0..140 => 1 + usize::from(self.0) % 8,
            140..200 => 16 + usize::from(self.0 - 140),
            200..240 => 13 + usize::from(self.0 - 200) % 6, // around 15 and 16
            240..252 => 32 << (self.0 - 240).min(8),
            _ => 8191 * usize::from(self.0 - 251) + usize::from(self.1 % 4),
        }
    }

    fn zero_width(self, opaque: bool) -> Vec<Token> {
        let special = |roles: &[&'static str]| Token::Special(roles.iter().copied().collect());
        match self.1 {
            0..200 => vec![],
            200..210 => vec![special(&["<a>"])],
            210..220 => vec![special(&["<b>", "eos"]), special(&["<a>"])],
            220..225 => vec![special(&["pad", "eos"]); 3],
            225..230 => vec![special(&[])],
            230..240 => vec![Token::Text(vec![])],
            240..245 => vec![Token::Text(vec![]), special(&["<a>", "eos"])],
            245..250 => vec![special(&["<a>"]), Token::Text(vec![]), special(&["<b>"])],
            _ if opaque => vec![Token::Opaque],
            _ => vec![special(&["unk"])],
        }
    }
}

/// The text in tokens, cut by the cuts over and over.
fn tokens(text: &[u8], cuts: &[Cut], opaque: bool) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut start = 0;
    for at in 0.. {
        if start == text.len() {
            break;
        }
        let cut = if cuts.is_empty() { Cut(4, 0) } else { cuts[at % cuts.len()] };
        // The last token takes all that is left, so that a row does not take a second.
        let end = if at < MOST_TOKENS {
            text.len().min(start + cut.bytes())
        } else {
            text.len().min(start + 60_000)
        };
        tokens.push(Token::Text(text[start..end].to_vec()));
        tokens.extend(cut.zero_width(opaque));
        start = end;
    }
    tokens
}

impl Plan {
    /// The text of the head: nothing repeats, no spaces.
    fn head(&self) -> Vec<u8> {
        let mut state = 7_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'A' + u8::try_from((state >> 16) % 57).expect("small")
        };
        (0..self.head.bytes()).map(|_| byte()).collect()
    }

    fn text(&self) -> Vec<u8> {
        let length = if self.text.is_empty() { 0 } else { self.length.bytes() };
        let period = self.text.len();
        let changed = |at: usize| if self.changing { (at / period % 251) as u8 } else { 0 };
        (0..length).map(|at| self.text[at % period].wrapping_add(changed(at))).collect()
    }

    /// The tail alone: two tokenizations of one text, of which the student's is then changed.
    fn tail(&self) -> Row {
        let text = self.text();
        let teacher = tokens(&text, &self.cuts[0], self.opaque);
        let mut student = tokens(&text, &self.cuts[1], self.opaque);
        for (edit, at) in self.edits.iter() {
            edit.apply(&mut student, usize::from(*at));
        }
        Row { teacher: side_of(&teacher), student: side_of(&student) }
    }

    /// Two tokenizations of the head, each ending with a token that has bytes.
    fn head_row(&self) -> Row {
        let head = self.head();
        let side = |cuts| {
            let mut tokens = tokens(&head, cuts, false);
            tokens.truncate(
                tokens.iter().rposition(|token| !bytes_of(token).is_empty()).map_or(0, |at| at + 1),
            );
            side_of(&tokens)
        };
        Row { teacher: side(&self.head_cuts[0]), student: side(&self.head_cuts[1]) }
    }
}

impl Edit {
    fn apply(self, tokens: &mut Vec<Token>, at: usize) {
        if tokens.is_empty() {
            return;
        }
        let at = at % tokens.len();
        match (self, &mut tokens[at]) {
            (Self::Replace { byte, at }, Token::Text(bytes)) if !bytes.is_empty() => {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            (Self::ReplaceAt(position, byte), _) => replace_at(tokens, position.bytes(), byte),
            (Self::Insert(byte), Token::Text(bytes)) => bytes.push(byte),
            (Self::Space, Token::Text(bytes)) => bytes.insert(0, b' '),
            (Self::Remove, _) => drop(tokens.remove(at)),
            (Self::Opaque, _) => tokens.insert(at, Token::Opaque),
            _ => {}
        }
    }
}

fn replace_at(tokens: &mut [Token], mut position: usize, byte: u8) {
    for token in tokens {
        let Token::Text(bytes) = token else { continue };
        if position < bytes.len() {
            bytes[position] = byte;
            return;
        }
        position -= bytes.len();
    }
}

// ---- What must come out --------------------------------------------------------------------------------

/// The tail alone, checked in every way.
fn check_tail(row: &Row) -> Batch {
    let found = align(row);
    promises::all_are_kept(row, &found);
    let swapped = align(&Row { teacher: row.student.clone(), student: row.teacher.clone() });
    promises::swapping_the_sides_swaps_chunks_differences_and_text_pairs(&found, &swapped);
    if texts(&row.teacher) == texts(&row.student) && !has_opaque(&row.teacher) && !has_opaque(&row.student) {
        equals_the_common_boundaries(row, &found);
    } else {
        equals_the_common_boundaries_before_the_first_difference(row, &found);
    }
    found
}

fn texts(side: &Side) -> Vec<u8> {
    side.bytes(&side.columns())
}

fn has_opaque(side: &Side) -> bool {
    side.columns().any(|column| *side.token(column) == Token::Opaque)
}

fn equals_the_common_boundaries(row: &Row, found: &Batch) {
    let expected = of_one_text(row);
    assert_eq!(found.found.chunks, expected.found.chunks);
    assert_eq!(found.found, expected.found);
    let bytes = number(texts(&row.teacher).len());
    let counts = found.counts[0];
    assert_eq!([counts.teacher_bytes, counts.student_bytes, counts.chunk_bytes], [bytes; 3]);
    assert_eq!(counts.space, 0);
}

/// Up to the spaces before the first difference, of which one may be set aside.
fn equals_the_common_boundaries_before_the_first_difference(row: &Row, found: &Batch) {
    let (teacher, student) = (known_text(&row.teacher), known_text(&row.student));
    let same = teacher.iter().zip(&student).take_while(|(one, other)| one == other).count();
    let settled = teacher[..same].iter().rposition(|byte| *byte != b' ').map_or(0, |at| at + 1);
    let cut = |side: &Side| {
        let mut length = 0;
        let end = side.columns().find(|column| {
            length += bytes_of(side.token(*column)).len();
            length > settled || *side.token(*column) == Token::Opaque
        });
        let ids = side.ids[..end.map_or(side.ids.len(), |end| end as usize)].to_vec();
        Side { vocabulary: side.vocabulary.clone(), ids }
    };
    let before = Row { teacher: cut(&row.teacher), student: cut(&row.student) };
    let expected = of_one_text(&before);
    let count = expected.found.encloses.len();
    assert!(found.found.encloses.len() >= count, "{count} chunks before the first difference: {found:?}");
    assert_eq!(ranges(&found.found.chunks)[..count], ranges(&expected.found.chunks));
    assert_eq!(found.found.encloses[..count], expected.found.encloses);
    let exact = pairs(&expected, PairKind::Exact);
    assert_eq!(pairs(found, PairKind::Exact)[..exact.len()], exact);
}

/// The bytes before the first token whose bytes are unknown.
fn known_text(side: &Side) -> Vec<u8> {
    let known = side.columns().take_while(|column| *side.token(*column) != Token::Opaque);
    known.flat_map(|column| bytes_of(side.token(column)).iter().copied()).collect()
}

/// Head, a special that only both sides' own pairs with, and tail: the head is the common boundaries, and the
/// tail is what it is alone, wherever it begins.
fn check_whole(plan: &Plan, tail: &Row, tail_found: &Batch) -> (Row, Batch) {
    let head = plan.head_row();
    let mut expected = align(&head);
    equals_the_common_boundaries(&head, &expected);
    let whole = Row {
        teacher: behind_each_other(&head.teacher, &tail.teacher),
        student: behind_each_other(&head.student, &tail.student),
    };
    let (teacher, student) = (head.teacher.ids.len(), head.student.ids.len());
    let mut counts = expected.counts[0];
    expected.found.pairs.teacher.push(i32::try_from(teacher).expect("a short row"));
    expected.found.pairs.student.push(i32::try_from(student).expect("a short row"));
    expected.found.pairs.kind.push(PairKind::Role as u8);
    counts.role += 1;
    append(&mut expected, &shifted(tail_found.clone(), teacher + 1, student + 1));
    expected::add_counts(&mut counts, &tail_found.counts[0]);
    let mut row = nothing();
    append(&mut row, &expected);
    end_row(&mut row, counts);
    let found = align(&whole);
    assert_eq!(found, row);
    (whole, found)
}

fn behind_each_other(head: &Side, tail: &Side) -> Side {
    let own = |side: &Side| side.columns().map(|column| side.token(column).clone()).collect::<Vec<_>>();
    let between = vec![Token::Special(BTreeSet::from(["<between>"]))];
    side_of(&[own(head), between, own(tail)].concat())
}

/// All rows have one vocabulary a side, as rows of a batch do.
fn in_one_vocabulary(rows: &[Row]) -> Vec<Row> {
    let merge = |side: fn(&Row) -> &Side| -> Vec<Side> {
        let tokens = |row: &Row| -> Vec<Token> {
            side(row).columns().map(|column| side(row).token(column).clone()).collect()
        };
        let all = side_of(&rows.iter().flat_map(tokens).collect::<Vec<_>>());
        let mut rest = all.ids.as_slice();
        let cut = |row: &Row| {
            let (ids, behind) = rest.split_at(side(row).ids.len());
            rest = behind;
            Side { vocabulary: all.vocabulary.clone(), ids: ids.to_vec() }
        };
        rows.iter().map(cut).collect()
    };
    let (teachers, students) = (merge(|row| &row.teacher), merge(|row| &row.student));
    teachers.into_iter().zip(students).map(|(teacher, student)| Row { teacher, student }).collect()
}

fuzz_target!(|input: Input| {
    let whole: Vec<(Row, Batch)> = input
        .rows
        .iter()
        .map(|plan| {
            let tail = plan.tail();
            let found = check_tail(&tail);
            check_whole(plan, &tail, &found)
        })
        .collect();
    let rows = in_one_vocabulary(&whole.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>());
    if rows.is_empty() {
        return;
    }
    let aligner = aligner(&rows[0]);
    let teacher: Vec<Vec<i64>> = rows.iter().map(|row| row.teacher.ids.clone()).collect();
    let student: Vec<Vec<i64>> = rows.iter().map(|row| row.student.ids.clone()).collect();
    a_batch_is_its_rows(&aligner, &teacher, &student, &whole, 1);
    a_refused_row_leaves_nothing_behind(&aligner, &teacher, &student, &whole, input.bad_row);
    if input.segments {
        segments_are_rows(&aligner, &teacher, &student, input.junk);
    }
});

fn a_batch_is_its_rows(
    aligner: &Aligner,
    teacher: &[Vec<i64>],
    student: &[Vec<i64>],
    alone: &[(Row, Batch)],
    threads: usize,
) {
    let batch = align_rows(aligner, teacher, student, threads).expect("known ids");
    for (at, (_, found)) in alone.iter().enumerate() {
        assert_eq!(row_of(&batch, at), *found, "row {at}");
    }
}

fn a_refused_row_leaves_nothing_behind(
    aligner: &Aligner,
    teacher: &[Vec<i64>],
    student: &[Vec<i64>],
    alone: &[(Row, Batch)],
    bad: u8,
) {
    let row = usize::from(bad) % student.len();
    let mut refused = student.to_vec();
    let column = refused[row].len() / 2;
    refused[row].insert(column, 1 << 30);
    let size = aligner.student().size();
    let expected = Error::UnknownId { side: dskd::side::Side::Student, row, column, id: 1 << 30, size };
    assert_eq!(align_rows(aligner, teacher, &refused, 1), Err(expected));
    a_batch_is_its_rows(aligner, teacher, student, alone, 2);
}

/// The rows as segments of one row, with ids that are none between them.
fn segments_are_rows(aligner: &Aligner, teacher: &[Vec<i64>], student: &[Vec<i64>], junk: i64) {
    let (teacher_ids, teacher_mask, teacher_columns) = joined(teacher, junk);
    let (student_ids, student_mask, student_columns) = joined(student, junk);
    let offsets = [[0, number(teacher_ids.len())], [0, number(student_ids.len())]];
    let found = align_batch(
        aligner,
        Rows { ids: Ids::I64(Values::Joined(&teacher_ids)), offsets: &offsets[0], mask: Some(&teacher_mask) },
        Rows { ids: Ids::I64(Values::Joined(&student_ids)), offsets: &offsets[1], mask: Some(&student_mask) },
        1,
    );
    let segments = Segments {
        teacher: teacher_columns.iter().map(|(at, row)| (*at, teacher[*row].as_slice())).collect(),
        student: student_columns.iter().map(|(at, row)| (*at, student[*row].as_slice())).collect(),
    };
    assert_eq!(found, Ok(row_of_segments(aligner, &segments, |_, _, _| {})));
}

/// Ids, mask, and where each row that is not empty begins.
fn joined(rows: &[Vec<i64>], junk: i64) -> (Vec<i64>, Vec<bool>, Vec<(usize, usize)>) {
    let (mut ids, mut mask, mut columns) = (vec![junk], vec![false], Vec::new());
    for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
        columns.push((ids.len(), at));
        ids.extend(row);
        mask.extend(vec![true; row.len()]);
        ids.push(junk);
        mask.push(false);
    }
    (ids, mask, columns)
}
