//! Many rows, serial or in the pool. The result is in the rows' order and never depends on the number
//! of threads; the first error is that of the lowest row.

#![forbid(unsafe_code)]

use std::iter;
use std::ops::Range;

use rayon::prelude::*;

use crate::align::{Aligner, Counts, Found, Segment, align_segments, surplus_segments};
use crate::error::{Error, Side};
use crate::pool;
use crate::vocabulary::Vocabulary;

/// About how many tokens one task takes: enough to forget what starting it costs.
const TOKENS_A_BLOCK: usize = 1 << 14;

/// Token ids in one of the integer types that callers hold.
#[derive(Clone, Copy, Debug)]
pub enum Ids<'a> {
    /// numpy's int32.
    I32(&'a [i32]),
    /// numpy's uint32.
    U32(&'a [u32]),
    /// numpy's and torch's int64.
    I64(&'a [i64]),
}

impl Ids<'_> {
    fn len(&self) -> usize {
        match self {
            Self::I32(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
            Self::I64(ids) => ids.len(),
        }
    }
}

/// One side of a batch: row `i` is `ids[offsets[i]..offsets[i + 1]]`, and so is its mask.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The ids of all rows.
    pub ids: Ids<'a>,
    /// Where rows begin and end; one more than there are rows.
    pub offsets: &'a [i64],
    /// Which positions take part; all of them if there is none.
    pub mask: Option<&'a [bool]>,
}

impl Rows<'_> {
    /// The number of rows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn range(&self, row: usize) -> Range<usize> {
        let index = |at: usize| usize::try_from(self.offsets[at]).expect("offsets were checked");
        index(row)..index(row + 1)
    }

    fn tokens_in(&self, rows: &Range<usize>) -> usize {
        rows.clone().map(|row| self.range(row).len()).sum()
    }

    fn check(&self, side: Side) -> Result<(), Error> {
        let values = self.ids.len();
        for (row, bounds) in self.offsets.windows(2).enumerate() {
            let (start, end) = (bounds[0], bounds[1]);
            if start < 0 || start > end || usize::try_from(end).is_ok_and(|end| end > values) {
                return Err(Error::Offsets { side, row, start, end, values });
            }
            let length = self.range(row).len();
            if i32::try_from(length).is_err() {
                return Err(Error::RowTooLong { side, row, length });
            }
        }
        match self.mask.map(<[bool]>::len) {
            Some(mask) if mask != values => Err(Error::MaskLength { side, mask, ids: values }),
            _ => Ok(()),
        }
    }

    /// The maximal runs of selected columns of a row; without a mask the whole row, even an empty one.
    fn segments(&self, row: usize) -> Vec<Range<usize>> {
        let range = self.range(row);
        let Some(mask) = self.mask.map(|mask| &mask[range.clone()]) else {
            return iter::once(0..range.len()).collect();
        };
        let mut segments = Vec::new();
        let mut start = 0;
        for run in mask.chunk_by(|one, other| one == other) {
            if run[0] {
                segments.push(start..start + run.len());
            }
            start += run.len();
        }
        segments
    }

    /// The ids of a row, checked where they take part; the others are not looked at.
    fn tokens(
        &self,
        row: usize,
        side: Side,
        vocabulary: &Vocabulary,
        tokens: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let range = self.range(row);
        let mask = self.mask.map(|mask| &mask[range.clone()]);
        let checked = match self.ids {
            Ids::I32(ids) => check_ids(&ids[range], mask, vocabulary, tokens),
            Ids::U32(ids) => check_ids(&ids[range], mask, vocabulary, tokens),
            Ids::I64(ids) => check_ids(&ids[range], mask, vocabulary, tokens),
        };
        checked.map_err(|(column, id)| Error::UnknownId { side, row, column, id, size: vocabulary.size() })
    }
}

/// Puts the ids into `tokens`, 0 where they take no part; fails with the first column and id that the
/// vocabulary does not have.
fn check_ids<T: Copy + Into<i64>>(
    ids: &[T],
    mask: Option<&[bool]>,
    vocabulary: &Vocabulary,
    tokens: &mut Vec<u32>,
) -> Result<(), (usize, i64)> {
    tokens.clear();
    for (column, id) in ids.iter().enumerate() {
        let id = (*id).into();
        tokens.push(match vocabulary.find(id) {
            _ if mask.is_some_and(|mask| !mask[column]) => 0,
            Some(token) => token,
            None => return Err((column, id)),
        });
    }
    Ok(())
}

/// What was found in all rows. The offsets, one more than there are rows, say where each row's part of
/// the columns begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Pairs, chunks and differences of all rows, one row after the other.
    pub found: Found,
    /// Offsets of the pairs.
    pub pair_offsets: Vec<i64>,
    /// Offsets of the chunks.
    pub chunk_offsets: Vec<i64>,
    /// Offsets of the differences.
    pub difference_offsets: Vec<i64>,
    /// One for each row.
    pub counts: Vec<Counts>,
}

/// Aligns row `i` of the teacher with row `i` of the student, on at most this many threads and no more
/// than there are processors.
pub fn align_batch(
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    threads: usize,
) -> Result<Batch, Error> {
    let rows = teacher.count();
    if rows != student.count() {
        return Err(Error::RowCounts { teacher: rows, student: student.count() });
    }
    teacher.check(Side::Teacher)?;
    student.check(Side::Student)?;
    let align = |rows: Range<usize>| align_rows(aligner, teacher, student, rows);
    if threads > 1 {
        let blocks = blocks_of_rows(&teacher, &student);
        if let Some(pool) = (blocks.len() > 1).then(|| pool::of_this_process(threads)).flatten() {
            let parts = pool.install(|| blocks.into_par_iter().map(align).collect::<Vec<_>>());
            return join(parts, rows);
        }
    }
    align(0..rows)
}

fn blocks_of_rows(teacher: &Rows<'_>, student: &Rows<'_>) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for row in 0..teacher.count() {
        tokens += teacher.range(row).len() + student.range(row).len();
        if tokens >= TOKENS_A_BLOCK {
            blocks.push(start..row + 1);
            (start, tokens) = (row + 1, 0);
        }
    }
    if start < teacher.count() {
        blocks.push(start..teacher.count());
    }
    blocks
}

fn align_rows(
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    rows: Range<usize>,
) -> Result<Batch, Error> {
    let chunks = teacher.tokens_in(&rows).min(student.tokens_in(&rows));
    let mut batch = Batch::with_capacity(rows.len(), chunks);
    let (mut teacher_tokens, mut student_tokens) = (Vec::new(), Vec::new());
    for row in rows {
        teacher.tokens(row, Side::Teacher, aligner.teacher(), &mut teacher_tokens)?;
        student.tokens(row, Side::Student, aligner.student(), &mut student_tokens)?;
        let counts = align_row(
            aligner,
            (&teacher_tokens, &teacher.segments(row)),
            (&student_tokens, &student.segments(row)),
            &mut batch.found,
        );
        batch.end_row(counts);
    }
    Ok(batch)
}

/// Aligns the k-th segment with the k-th; what one side has more is a difference each, against the
/// place where the other side's last segment ends.
fn align_row(
    aligner: &Aligner,
    teacher: (&[u32], &[Range<usize>]),
    student: (&[u32], &[Range<usize>]),
    found: &mut Found,
) -> Counts {
    let mut counts = Counts::default();
    let shared = teacher.1.len().min(student.1.len());
    for (teachers, students) in teacher.1.iter().zip(student.1) {
        align_segments(
            aligner,
            segment(teacher.0, teachers),
            segment(student.0, students),
            found,
            &mut counts,
        );
    }
    let end = |segments: &[Range<usize>]| Segment::empty(segments.last().map_or(0, |last| last.end));
    for surplus in &teacher.1[shared..] {
        surplus_segments(aligner, segment(teacher.0, surplus), end(student.1), found, &mut counts);
    }
    for surplus in &student.1[shared..] {
        surplus_segments(aligner, end(teacher.1), segment(student.0, surplus), found, &mut counts);
    }
    counts.segment_mismatch = i64::from(teacher.1.len() != student.1.len());
    counts
}

fn segment<'a>(tokens: &'a [u32], range: &Range<usize>) -> Segment<'a> {
    Segment { tokens: &tokens[range.clone()], column: range.start }
}

impl Batch {
    /// No rows yet, and room for this many rows and chunks.
    fn with_capacity(rows: usize, chunks: usize) -> Self {
        let offsets = || {
            let mut offsets = Vec::with_capacity(rows + 1);
            offsets.push(0);
            offsets
        };
        Self {
            found: Found::with_capacity(chunks),
            pair_offsets: offsets(),
            chunk_offsets: offsets(),
            difference_offsets: offsets(),
            counts: Vec::with_capacity(rows),
        }
    }

    fn end_row(&mut self, counts: Counts) {
        let end = |length: usize| i64::try_from(length).expect("a length fits i64");
        self.pair_offsets.push(end(self.found.pairs.kind.len()));
        self.chunk_offsets.push(end(self.found.encloses.len()));
        self.difference_offsets.push(end(self.found.differences.teacher_start.len()));
        self.counts.push(counts);
    }

    fn append(&mut self, part: Self) {
        append_offsets(&mut self.pair_offsets, &part.pair_offsets);
        append_offsets(&mut self.chunk_offsets, &part.chunk_offsets);
        append_offsets(&mut self.difference_offsets, &part.difference_offsets);
        self.found.append(part.found);
        self.counts.extend(part.counts);
    }
}

/// One batch of all parts, or the first error.
fn join(parts: Vec<Result<Batch, Error>>, rows: usize) -> Result<Batch, Error> {
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
    let chunks = parts.iter().map(|part| part.found.encloses.len()).sum();
    let mut all = Batch::with_capacity(rows, chunks);
    for part in parts {
        all.append(part);
    }
    Ok(all)
}

fn append_offsets(offsets: &mut Vec<i64>, part: &[i64]) {
    let base = *offsets.last().expect("offsets begin with 0");
    offsets.extend(part[1..].iter().map(|end| base + end));
}
