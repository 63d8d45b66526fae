//! Many rows, serial or in the pool. The result is in the rows' order and never depends on the number
//! of threads; the first error is that of the lowest row.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::iter;
use std::ops::Range;

use rayon::prelude::*;

use crate::align::{Aligner, Segment, align_segments, surplus_segments};
use crate::blocks::Blocks;
use crate::error::{Error, Side};
use crate::found::{self, Counts, Found, Pairs, Ranges, Trace};
use crate::pool;
use crate::stop::Stop;
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
    /// How many they are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
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

    /// Reads the segments of a row, the maximal runs of selected columns, their ids checked; without a mask the
    /// whole row is one, even an empty one.
    fn read(
        &self,
        row: usize,
        side: Side,
        vocabulary: &Vocabulary,
        stop: &Stop,
        into: &mut RowSide,
    ) -> Result<(), Error> {
        let range = self.range(row);
        let mask = self.mask.map(|mask| &mask[range.clone()]);
        let read = match self.ids {
            Ids::I32(ids) => into.read(&ids[range], mask, vocabulary, stop),
            Ids::U32(ids) => into.read(&ids[range], mask, vocabulary, stop),
            Ids::I64(ids) => into.read(&ids[range], mask, vocabulary, stop),
        };
        read.map_err(|(column, id)| Error::UnknownId { side, row, column, id, size: vocabulary.size() })
    }
}

/// One side of the row at hand.
#[derive(Default)]
struct RowSide {
    /// The ids of all segments.
    tokens: Vec<u32>,
    /// Where in them each segment is, and the column of its first.
    segments: Vec<(Range<usize>, usize)>,
}

impl RowSide {
    /// Most tokens whose memory is kept.
    const KEPT: usize = 1 << 16;

    /// Reads what is selected; fails with the first column and id that the vocabulary does not have.
    fn read<T: Copy + Into<i64>>(
        &mut self,
        ids: &[T],
        mask: Option<&[bool]>,
        vocabulary: &Vocabulary,
        stop: &Stop,
    ) -> Result<(), (usize, i64)> {
        self.tokens.clear();
        self.segments.clear();
        match mask {
            None => self.read_segment(ids, 0..ids.len(), vocabulary, stop),
            Some(mask) => {
                let mut runs = runs_of_true(mask);
                runs.try_for_each(|run| self.read_segment(ids, run, vocabulary, stop))
            }
        }
    }

    fn read_segment<T: Copy + Into<i64>>(
        &mut self,
        ids: &[T],
        columns: Range<usize>,
        vocabulary: &Vocabulary,
        stop: &Stop,
    ) -> Result<(), (usize, i64)> {
        /// So many at once, and then it is asked whether to stop.
        const PIECE: usize = 1 << 16;
        let start = self.tokens.len();
        self.tokens.reserve(columns.len());
        let mut all_inside = true;
        for piece in ids[columns.clone()].chunks(PIECE) {
            all_inside &= push_ids(piece, vocabulary.size(), &mut self.tokens);
            if stop.is_set() {
                return Ok(());
            }
        }
        self.segments.push((start..self.tokens.len(), columns.start));
        if all_inside {
            return Ok(());
        }
        let mut numbered = columns.clone().map(|column| (column, ids[column].into()));
        Err(numbered.find(|(_, id)| vocabulary.find(*id).is_none()).expect("not all are inside"))
    }

    fn segment(&self, number: usize) -> Segment<'_> {
        let (tokens, column) = &self.segments[number];
        Segment { tokens: &self.tokens[tokens.clone()], column: *column }
    }

    /// Where the last segment ends.
    fn end(&self) -> Segment<'_> {
        Segment::empty(self.segments.last().map_or(0, |(tokens, column)| column + tokens.len()))
    }

    fn is_small(&self) -> bool {
        self.tokens.capacity() <= Self::KEPT && self.segments.capacity() <= Self::KEPT
    }
}

fn runs_of_true(mask: &[bool]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    iter::from_fn(move || {
        let start = at + first(&mask[at..], true)?;
        at = first(&mask[start..], false).map_or(mask.len(), |length| start + length);
        Some(start..at)
    })
}

/// Where this value first stands; eight are looked at at once.
fn first(mask: &[bool], value: bool) -> Option<usize> {
    let (eights, _) = mask.as_chunks::<8>();
    let others = 8 * eights.iter().take_while(|eight| **eight == [!value; 8]).count();
    mask[others..].iter().position(|one| *one == value).map(|behind| others + behind)
}

/// Pushes the ids, whatever they are; says whether all are below the size.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what does not fit is refused")]
fn push_ids<T: Copy + Into<i64>>(ids: &[T], size: usize, tokens: &mut Vec<u32>) -> bool {
    // Without a branch: the sign bit of either is set where an id is below zero or above the last.
    let last = i64::try_from(size).expect("MAX_ENTRIES fits") - 1;
    let mut outside = 0;
    tokens.extend(ids.iter().map(|id| {
        let id = (*id).into();
        outside |= id | last.wrapping_sub(id);
        id as u32
    }));
    outside >= 0
}

/// What was found in all rows, as it was written down; columns are made of it when somebody asks.
#[derive(Debug, Default)]
pub struct Aligned {
    parts: Vec<Trace>,
    /// One for each row.
    pub counts: Vec<Counts>,
    /// How many chunks each row has, and how many differences.
    lengths: Vec<(usize, usize)>,
}

impl Aligned {
    /// The pairs of all rows, one row after the other.
    #[must_use]
    pub fn pairs(&self) -> Pairs {
        let count = self.counts.iter().map(pairs_in).sum();
        found::pairs_of(&self.parts, count)
    }

    /// Where each row's part of the pairs begins, and where the last one ends.
    #[must_use]
    pub fn pair_offsets(&self) -> Vec<i64> {
        offsets(self.counts.iter().map(pairs_in))
    }

    /// The chunks of all rows, and for each whether it encloses a token of zero width.
    #[must_use]
    pub fn chunks(&self) -> (Ranges, Vec<bool>) {
        found::chunks_of(&self.parts)
    }

    /// Offsets of the chunks.
    #[must_use]
    pub fn chunk_offsets(&self) -> Vec<i64> {
        offsets(self.lengths.iter().map(|lengths| lengths.0))
    }

    /// The differences of all rows.
    #[must_use]
    pub fn differences(&self) -> Ranges {
        found::differences_of(&self.parts)
    }

    /// Offsets of the differences.
    #[must_use]
    pub fn difference_offsets(&self) -> Vec<i64> {
        offsets(self.lengths.iter().map(|lengths| lengths.1))
    }

    fn append(&mut self, part: Self) {
        self.parts.extend(part.parts);
        self.counts.extend(part.counts);
        self.lengths.extend(part.lengths);
    }
}

fn pairs_in(counts: &Counts) -> usize {
    usize::try_from(counts.exact + counts.role + counts.space).expect("counts are not negative")
}

/// From lengths to offsets, one more than there are lengths.
fn offsets(lengths: impl Iterator<Item = usize>) -> Vec<i64> {
    let mut offsets = Vec::with_capacity(lengths.size_hint().0 + 1);
    let mut end = 0;
    offsets.push(end);
    offsets.extend(lengths.map(|length| {
        end += i64::try_from(length).expect("a length fits i64");
        end
    }));
    offsets
}

/// What was found in all rows, in columns. The offsets, one more than there are rows, say where each row's
/// part of the columns begins.
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

impl From<Aligned> for Batch {
    fn from(aligned: Aligned) -> Self {
        let (chunks, encloses) = aligned.chunks();
        let found = Found { pairs: aligned.pairs(), chunks, encloses, differences: aligned.differences() };
        Self {
            found,
            pair_offsets: aligned.pair_offsets(),
            chunk_offsets: aligned.chunk_offsets(),
            difference_offsets: aligned.difference_offsets(),
            counts: aligned.counts,
        }
    }
}

/// Aligns row `i` of the teacher with row `i` of the student, on at most this many threads and no more
/// than there are processors.
pub fn align_batch(
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    threads: usize,
) -> Result<Batch, Error> {
    align_until(&Stop::default(), aligner, teacher, student, threads).map(Batch::from)
}

/// The same, not in columns yet; or [`Error::Stopped`] soon after it was asked to stop.
pub fn align_until(
    stop: &Stop,
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    threads: usize,
) -> Result<Aligned, Error> {
    let rows = teacher.count();
    if rows != student.count() {
        return Err(Error::RowCounts { teacher: rows, student: student.count() });
    }
    teacher.check(Side::Teacher)?;
    student.check(Side::Student)?;
    let align = |rows: Range<usize>| align_rows(stop, aligner, teacher, student, rows);
    if threads > 1 {
        let blocks = blocks_of_rows(&teacher, &student);
        if let Some(pool) = (blocks.len() > 1).then(|| pool::of_this_process(threads)).flatten() {
            let parts = pool.install(|| blocks.into_par_iter().map(align).collect::<Vec<_>>());
            return join(parts);
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

/// What aligning needs besides its input and output. Kept by the thread from batch to batch: where batches
/// are small, making it would take longer than using it.
#[derive(Default)]
struct Workspace {
    blocks: Blocks,
    teacher: RowSide,
    student: RowSide,
}

thread_local! {
    static WORKSPACE: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

fn align_rows(
    stop: &Stop,
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    rows: Range<usize>,
) -> Result<Aligned, Error> {
    let chunks = teacher.tokens_in(&rows).min(student.tokens_in(&rows));
    let mut trace = Trace::with_capacity(chunks);
    let mut made = Aligned::default();
    let mut work = WORKSPACE.take().unwrap_or_default();
    for row in rows {
        if stop.is_set() {
            return Err(Error::Stopped);
        }
        teacher.read(row, Side::Teacher, aligner.teacher(), stop, &mut work.teacher)?;
        student.read(row, Side::Student, aligner.student(), stop, &mut work.student)?;
        let before = (trace.chunks(), trace.differences().len());
        made.counts.push(align_row(stop, aligner, &mut work, &mut trace));
        made.lengths.push((trace.chunks() - before.0, trace.differences().len() - before.1));
    }
    if stop.is_set() {
        return Err(Error::Stopped);
    }
    if work.teacher.is_small() && work.student.is_small() {
        WORKSPACE.set(Some(work));
    }
    made.parts.push(trace);
    Ok(made)
}

/// Aligns the k-th segment with the k-th; what one side has more is a difference each, against the
/// place where the other side's last segment ends.
fn align_row(stop: &Stop, aligner: &Aligner, work: &mut Workspace, found: &mut Trace) -> Counts {
    let Workspace { blocks, teacher, student } = work;
    let mut counts = Counts::default();
    let (teachers, students) = (teacher.segments.len(), student.segments.len());
    let shared = teachers.min(students);
    for number in 0..shared {
        let (teacher, student) = (teacher.segment(number), student.segment(number));
        align_segments(aligner, teacher, student, stop, blocks, found, &mut counts);
    }
    for number in shared..teachers {
        surplus_segments(aligner, teacher.segment(number), student.end(), found, &mut counts);
    }
    for number in shared..students {
        surplus_segments(aligner, teacher.end(), student.segment(number), found, &mut counts);
    }
    counts.segment_mismatch = i64::from(teachers != students);
    counts
}

/// All parts, or the first error.
fn join(parts: Vec<Result<Aligned, Error>>) -> Result<Aligned, Error> {
    let mut all = Aligned::default();
    for part in parts {
        all.append(part?);
    }
    Ok(all)
}
