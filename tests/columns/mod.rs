//! What was found in a batch with all its columns made, so that tests and fuzz targets can compare it.

#![allow(dead_code, reason = "each of those who share this uses a part of it")]
#![allow(missing_docs, reason = "the names are those of the library")]

use dskd::align::{Aligner, Counts, Pairs, Ranges};
use dskd::batch::{self, Aligned, Rows};
use dskd::error::Error;
use dskd::side::Sides;
use dskd::stop::Stop;

/// Everything found in one row or in many rows that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    pub pairs: Pairs,
    pub chunks: Ranges,
    /// For each chunk, whether it encloses a token of zero width.
    pub encloses: Vec<bool>,
    pub differences: Ranges,
}

/// The same of all rows. The offsets, one more than there are rows, say where each row's part of the columns begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub found: Columns,
    pub pair_offsets: Vec<i64>,
    pub chunk_offsets: Vec<i64>,
    pub difference_offsets: Vec<i64>,
    pub counts: Vec<Counts>,
}

impl Columns {
    /// Puts what another part found behind this; columns stay those of the rows.
    pub fn append(&mut self, other: &Self) {
        self.pairs.teacher.extend(&other.pairs.teacher);
        self.pairs.student.extend(&other.pairs.student);
        self.pairs.kind.extend(&other.pairs.kind);
        self.encloses.extend(&other.encloses);
        append_ranges(&mut self.chunks, &other.chunks);
        append_ranges(&mut self.differences, &other.differences);
    }
}

fn append_ranges(ranges: &mut Ranges, others: &Ranges) {
    ranges.teacher_start.extend(&others.teacher_start);
    ranges.teacher_end.extend(&others.teacher_end);
    ranges.student_start.extend(&others.student_start);
    ranges.student_end.extend(&others.student_end);
}

/// Aligns row `i` of the teacher with row `i` of the student, and makes all columns.
pub fn align_batch(
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    threads: usize,
) -> Result<Batch, Error> {
    let stop = Stop::default();
    batch::align(&stop, aligner, Sides { teacher, student }, threads)
        .and_then(|aligned| with_columns(&aligned, &stop))
}

fn with_columns(aligned: &Aligned, stop: &Stop<'_>) -> Result<Batch, Error> {
    let (chunks, encloses) = aligned.chunks(stop)?;
    let (pairs, differences) = (aligned.pairs(stop)?, aligned.differences(stop)?);
    Ok(Batch {
        found: Columns { pairs, chunks, encloses, differences },
        pair_offsets: aligned.pair_offsets(stop)?,
        chunk_offsets: aligned.chunk_offsets(stop)?,
        difference_offsets: aligned.difference_offsets(stop)?,
        counts: aligned.counts().copied().collect(),
    })
}
