//! Many rows, serial or in the pool. The result is in the rows' order and never depends on the number
//! of threads; the first error is that of the lowest row.

#![forbid(unsafe_code)]

use std::borrow::Cow;
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
use crate::vocabulary::{Id, Vocabulary};

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

impl<'a> Ids<'a> {
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

    fn widened(self) -> Cow<'a, [i64]> {
        match self {
            Self::I32(ids) => ids.iter().copied().map(i64::from).collect(),
            Self::U32(ids) => ids.iter().copied().map(i64::from).collect(),
            Self::I64(ids) => ids.into(),
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
}

/// A side and its ids, read as they are.
#[derive(Clone, Copy)]
struct Typed<'a, T> {
    rows: Rows<'a>,
    ids: &'a [T],
    side: Side,
    vocabulary: &'a Vocabulary,
}

impl<'a, T: Id> Typed<'a, T> {
    /// One row, cut into segments: the maximal runs of selected columns; without a mask the whole row is one,
    /// even an empty one.
    fn row<'b>(&self, row: usize, stop: &Stop, segments: &'b mut Vec<Range<usize>>) -> Row<'b, T>
    where
        'a: 'b,
    {
        let range = self.rows.range(row);
        segments.clear();
        match self.rows.mask {
            None => segments.push(0..range.len()),
            Some(mask) => segments.extend(runs_of_true(&mask[range.clone()]).take_while(|_| !stop.is_set())),
        }
        Row { ids: &self.ids[range], segments }
    }

    /// Fails with the first of the selected ids that the vocabulary does not have.
    fn check(&self, row: usize, selected: Row<'_, T>) -> Result<(), Error> {
        let size = self.vocabulary.size();
        let mut columns = selected.segments.iter().cloned().flatten();
        let unknown = columns.find(|column| !self.vocabulary.has(selected.ids[*column]));
        unknown.map_or(Ok(()), |column| {
            let id = selected.ids[column].into();
            Err(Error::UnknownId { side: self.side, row, column, id, size })
        })
    }
}

/// One side of the row at hand: its ids, and the columns of its segments.
#[derive(Clone, Copy)]
struct Row<'a, T> {
    ids: &'a [T],
    segments: &'a [Range<usize>],
}

impl<'a, T> Row<'a, T> {
    fn segment(&self, number: usize) -> Segment<'a, T> {
        let columns = &self.segments[number];
        Segment { tokens: &self.ids[columns.clone()], column: columns.start }
    }

    /// Where the last segment ends.
    fn end(&self) -> Segment<'a, T> {
        Segment::empty(self.segments.last().map_or(0, |columns| columns.end))
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

/// Where this value first stands; thirty-two are looked at at once, and then eight.
fn first(mask: &[bool], value: bool) -> Option<usize> {
    let (many, _) = mask.as_chunks::<32>();
    let skipped = 32 * many.iter().take_while(|many| **many == [!value; 32]).count();
    let (eights, rest) = mask[skipped..].as_chunks::<8>();
    let others = u64::from_le_bytes([u8::from(!value); 8]);
    for (number, eight) in eights.iter().enumerate() {
        let differing = u64::from_le_bytes(eight.map(u8::from)) ^ others;
        if differing != 0 {
            return Some(skipped + 8 * number + differing.trailing_zeros() as usize / 8);
        }
    }
    let behind = rest.iter().position(|one| *one == value)?;
    Some(mask.len() - rest.len() + behind)
}

/// What was found in all rows, as it was written down; columns are made of it when somebody asks.
#[derive(Debug, Default)]
pub struct Aligned {
    parts: Vec<Trace>,
    /// How many pairs each part has.
    pairs: Vec<usize>,
    /// How many threads may make columns.
    threads: usize,
    /// One for each row.
    pub counts: Vec<Counts>,
    /// How many chunks each row has, and how many differences.
    lengths: Vec<(usize, usize)>,
}

impl Aligned {
    /// How many chunks and pairs there are in all rows: how long it takes to make columns of them.
    #[must_use]
    pub fn size(&self) -> usize {
        self.lengths.iter().map(|lengths| lengths.0).sum::<usize>() + self.pairs.iter().sum::<usize>()
    }

    /// The pairs of all rows, one row after the other.
    #[must_use]
    pub fn pairs(&self) -> Pairs {
        let count = self.pairs.iter().sum();
        if let [part] = &self.parts[..] {
            return part.pairs(count);
        }
        let mut pairs = Pairs::unwritten(count);
        let parts = self.parts.iter().zip(pairs.cut(self.pairs.iter().copied()));
        if let Some(pool) = pool::of_this_process(self.threads) {
            let parts = parts.collect::<Vec<_>>();
            pool.install(|| parts.into_par_iter().for_each(|(part, room)| part.write_pairs(room)));
        } else {
            parts.for_each(|(part, room)| part.write_pairs(room));
        }
        pairs
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
        self.pairs.extend(part.pairs);
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
    match (teacher.ids, student.ids) {
        (Ids::I32(ids), Ids::I32(others)) => {
            align_typed(stop, aligner, teacher, student, (ids, others), threads)
        }
        (Ids::U32(ids), Ids::U32(others)) => {
            align_typed(stop, aligner, teacher, student, (ids, others), threads)
        }
        (ids, others) => {
            let (ids, others) = (ids.widened(), others.widened());
            align_typed(stop, aligner, teacher, student, (&ids, &others), threads)
        }
    }
}

/// The same where both sides' ids are of one type.
fn align_typed<T: Id + Sync>(
    stop: &Stop,
    aligner: &Aligner,
    teacher: Rows<'_>,
    student: Rows<'_>,
    (ids, others): (&[T], &[T]),
    threads: usize,
) -> Result<Aligned, Error> {
    let rows = teacher.count();
    let of_teacher = Typed { rows: teacher, ids, side: Side::Teacher, vocabulary: aligner.teacher() };
    let of_student = Typed { rows: student, ids: others, side: Side::Student, vocabulary: aligner.student() };
    let align = |rows: Range<usize>| align_rows(stop, aligner, of_teacher, of_student, rows);
    if threads > 1 && rows > 1 {
        let blocks = blocks_of_rows(&teacher, &student);
        if let Some(pool) = (blocks.len() > 1).then(|| pool::of_this_process(threads)).flatten() {
            let parts = pool.install(|| blocks.into_par_iter().map(align).collect::<Vec<_>>());
            return join(parts, threads);
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
    /// The segments of the row at hand, the teacher's and the student's.
    segments: [Vec<Range<usize>>; 2],
}

impl Workspace {
    /// Most segments of a row whose memory is kept.
    const KEPT: usize = 1 << 15;

    fn is_small(&self) -> bool {
        self.segments.iter().all(|segments| segments.capacity() <= Self::KEPT)
    }
}

thread_local! {
    static WORKSPACE: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

fn align_rows<T: Id>(
    stop: &Stop,
    aligner: &Aligner,
    teacher: Typed<'_, T>,
    student: Typed<'_, T>,
    rows: Range<usize>,
) -> Result<Aligned, Error> {
    let chunks = teacher.rows.tokens_in(&rows).min(student.rows.tokens_in(&rows));
    let mut trace = Trace::with_capacity(chunks);
    let mut made = Aligned::default();
    let mut work = WORKSPACE.take().unwrap_or_default();
    let Workspace { blocks, segments: [teachers, students] } = &mut *work;
    for row in rows {
        let teachers = teacher.row(row, stop, teachers);
        let students = student.row(row, stop, students);
        let before = (trace.chunks(), trace.differences().len());
        let counts = align_row(stop, aligner, (teachers, students), blocks, &mut trace);
        if stop.is_set() {
            return Err(Error::Stopped);
        }
        // An id that is unknown was taken for an opaque one; nobody else needs to look.
        if counts.teacher_opaque + counts.student_opaque > 0 {
            teacher.check(row, teachers)?;
            student.check(row, students)?;
        }
        made.counts.push(counts);
        made.lengths.push((trace.chunks() - before.0, trace.differences().len() - before.1));
    }
    if work.is_small() {
        WORKSPACE.set(Some(work));
    }
    made.pairs.push(made.counts.iter().map(pairs_in).sum());
    made.parts.push(trace);
    Ok(made)
}

/// Aligns the k-th segment with the k-th; what one side has more is a difference each, against the
/// place where the other side's last segment ends.
fn align_row<T: Id>(
    stop: &Stop,
    aligner: &Aligner,
    (teacher, student): (Row<'_, T>, Row<'_, T>),
    blocks: &mut Blocks,
    found: &mut Trace,
) -> Counts {
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
fn join(parts: Vec<Result<Aligned, Error>>, threads: usize) -> Result<Aligned, Error> {
    let mut all = Aligned { threads, ..Aligned::default() };
    for part in parts {
        all.append(part?);
    }
    Ok(all)
}
