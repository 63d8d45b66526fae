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

    fn get(&self, index: usize) -> i64 {
        match self {
            Self::I32(ids) => ids[index].into(),
            Self::U32(ids) => ids[index].into(),
            Self::I64(ids) => ids[index],
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
        tokens.clear();
        for (column, index) in self.range(row).enumerate() {
            if self.mask.is_some_and(|mask| !mask[index]) {
                tokens.push(0);
                continue;
            }
            let id = self.ids.get(index);
            let unknown = || Error::UnknownId { side, row, column, id, size: vocabulary.size() };
            tokens.push(vocabulary.find(id).ok_or_else(unknown)?);
        }
        Ok(())
    }
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

/// Aligns row `i` of the teacher with row `i` of the student, on at most this many threads.
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
    let blocks = blocks_of_rows(&teacher, &student);
    let align = |block: &Range<usize>| align_rows(aligner, teacher, student, block.clone());
    let pool = if threads > 1 && blocks.len() > 1 { pool::of_this_process(threads) } else { None };
    let parts: Vec<_> = match pool {
        Some(pool) => pool.install(|| blocks.par_iter().map(align).collect()),
        None => blocks.iter().map(align).collect(),
    };
    join(parts, rows)
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
    let mut batch = Batch::default();
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
    fn end_row(&mut self, counts: Counts) {
        let end = |length: usize| i64::try_from(length).expect("a length fits i64");
        self.pair_offsets.push(end(self.found.pairs.kind.len()));
        self.chunk_offsets.push(end(self.found.encloses.len()));
        self.difference_offsets.push(end(self.found.differences.teacher_start.len()));
        self.counts.push(counts);
    }
}

/// One batch of all parts, or the first error.
fn join(parts: Vec<Result<Batch, Error>>, rows: usize) -> Result<Batch, Error> {
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut all = Batch { counts: Vec::with_capacity(rows), ..Batch::default() };
    let starts = || {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        offsets
    };
    (all.pair_offsets, all.chunk_offsets, all.difference_offsets) = (starts(), starts(), starts());
    for part in parts {
        append_offsets(&mut all.pair_offsets, &part.pair_offsets);
        append_offsets(&mut all.chunk_offsets, &part.chunk_offsets);
        append_offsets(&mut all.difference_offsets, &part.difference_offsets);
        all.found.append(part.found);
        all.counts.extend(part.counts);
    }
    Ok(all)
}

fn append_offsets(offsets: &mut Vec<i64>, part: &[i64]) {
    let base = *offsets.last().expect("offsets begin with 0");
    offsets.extend(part.iter().map(|end| base + end));
}
