//! Many rows, serial or in the pool. The result is in the rows' order and never depends on the number
//! of threads; the first error is that of the lowest row.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::iter;
use std::ops::Range;

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::align::{Aligner, Segment, align_segments, surplus_segments};
use crate::blocks::Blocks;
use crate::error::Error;
use crate::found::{self, Counts, Pairs, Ranges, Trace};
use crate::pool;
use crate::side::{Side, Sides};
use crate::stop::{Pace, Stop};
use crate::vocabulary::{Id, Vocabulary};

/// About how many tokens one task takes: enough to forget what starting it costs.
const TOKENS_A_BLOCK: usize = 1 << 14;

/// The values of rows: one row behind the other, or each row for itself.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a, T> {
    /// In one array.
    Joined(&'a [T]),
    /// In an array each.
    Apart(&'a [&'a [T]]),
}

impl<T> Values<'_, T> {
    /// How many they are.
    fn count(&self) -> usize {
        match self {
            Self::Joined(values) => values.len(),
            Self::Apart(rows) => rows.iter().map(|row| row.len()).sum(),
        }
    }
}

impl<T: Id> Values<'_, T> {
    /// The same as int64, one row behind the other; good for nothing if there was a reason to stop.
    fn widened(&self, stop: &Stop<'_>) -> Vec<i64> {
        let mut wide = stop.room(self.count());
        let mut pace = Pace::default();
        let mut widen = |values: &[T]| {
            for values in values.chunks(TOKENS_A_BLOCK) {
                if stop.is_set() || pace.after_tokens(values.len(), stop) {
                    break;
                }
                wide.extend(values.iter().map(|value| -> i64 { (*value).into() }));
            }
        };
        match self {
            Self::Joined(values) => widen(values),
            Self::Apart(rows) => rows.iter().for_each(|row| widen(row)),
        }
        wide
    }
}

/// Token ids in one of the integer types that callers hold.
#[derive(Clone, Copy, Debug)]
pub enum Ids<'a> {
    /// numpy's int32.
    I32(Values<'a, i32>),
    /// numpy's uint32.
    U32(Values<'a, u32>),
    /// numpy's and torch's int64.
    I64(Values<'a, i64>),
}

impl Ids<'_> {
    /// How many they are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::I32(ids) => ids.count(),
            Self::U32(ids) => ids.count(),
            Self::I64(ids) => ids.count(),
        }
    }

    /// The ids of this row, if each row is for itself.
    fn count_apart(&self, row: usize) -> Option<usize> {
        match self {
            Self::I32(Values::Apart(rows)) => Some(rows.get(row).map_or(0, |row| row.len())),
            Self::U32(Values::Apart(rows)) => Some(rows.get(row).map_or(0, |row| row.len())),
            Self::I64(Values::Apart(rows)) => Some(rows.get(row).map_or(0, |row| row.len())),
            _ => None,
        }
    }

    fn widened(&self, stop: &Stop<'_>) -> Vec<i64> {
        match self {
            Self::I32(ids) => ids.widened(stop),
            Self::U32(ids) => ids.widened(stop),
            Self::I64(ids) => ids.widened(stop),
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
        let ids = self.ids.count();
        for (row, bounds) in self.offsets.windows(2).enumerate() {
            let (start, end) = (bounds[0], bounds[1]);
            let is_within = start >= 0 && start <= end && usize::try_from(end).is_ok_and(|end| end <= ids);
            if !is_within || self.ids.count_apart(row).is_some_and(|count| count != self.range(row).len()) {
                return Err(Error::Offsets { side, row, start, end, values: ids });
            }
            let length = self.range(row).len();
            if i32::try_from(length).is_err() {
                return Err(Error::RowTooLong { side, row, length });
            }
        }
        match self.mask.map(<[bool]>::len) {
            Some(mask) if mask != ids => Err(Error::MaskLength { side, mask, ids }),
            _ => Ok(()),
        }
    }
}

/// A side and its ids, read as they are.
#[derive(Clone, Copy)]
struct Typed<'a, T> {
    rows: Rows<'a>,
    ids: Values<'a, T>,
    side: Side,
    vocabulary: &'a Vocabulary,
}

impl<'a, T: Id> Typed<'a, T> {
    fn tokens_in(&self, rows: &Range<usize>) -> usize {
        rows.clone().map(|row| self.rows.range(row).len()).sum()
    }

    /// The ids of a row.
    fn ids(&self, row: usize) -> &'a [T] {
        match self.ids {
            Values::Joined(ids) => &ids[self.rows.range(row)],
            Values::Apart(rows) => rows[row],
        }
    }

    /// One row, cut into segments: the maximal runs of selected columns; without a mask the whole row is one,
    /// even an empty one.
    fn row<'b>(&self, row: usize, stop: &Stop<'_>, segments: &'b mut Vec<Range<usize>>) -> Row<'b, T>
    where
        'a: 'b,
    {
        let ids = self.ids(row);
        segments.clear();
        match self.rows.mask {
            None => stop.push(segments, 0..ids.len()),
            Some(mask) => push_runs_of_true(&mask[self.rows.range(row)], stop, segments),
        }
        Row { ids, segments }
    }

    /// Fails with the first of the selected ids that the vocabulary does not have.
    fn check(&self, row: usize, selected: Row<'_, T>, stop: &Stop<'_>) -> Result<(), Error> {
        let size = self.vocabulary.size();
        let mut pace = Pace::default();
        let mut columns = selected.segments.iter().cloned().flatten();
        let unknown =
            columns.find(|column| pace.after(1, stop) || !self.vocabulary.has(selected.ids[*column]));
        stop.check()?;
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

fn push_runs_of_true(mask: &[bool], stop: &Stop<'_>, segments: &mut Vec<Range<usize>>) {
    let mut pace = Pace::default();
    for run in runs_of_true(mask) {
        stop.push(segments, run);
        if pace.after(Pace::TOKEN, stop) || stop.is_set() {
            break;
        }
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

/// What was found in rows that follow each other, as it was written down.
#[derive(Debug, Default)]
struct Part {
    trace: Trace,
    /// How many pairs there are.
    pairs: usize,
    /// One for each row, and so are the lengths.
    counts: Vec<Counts>,
    lengths: Vec<Lengths>,
}

/// How many chunks and differences a row has.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    chunks: usize,
    differences: usize,
}

impl Part {
    /// Nothing yet, and room for so many rows and chunks.
    fn room(rows: usize, chunks: usize, stop: &Stop<'_>) -> Self {
        Self { trace: Trace::room(chunks, stop), pairs: 0, counts: stop.room(rows), lengths: stop.room(rows) }
    }

    fn lengths(&self) -> Lengths {
        Lengths { chunks: self.trace.chunks(), differences: self.trace.differences().len() }
    }

    /// Ends a row that was begun where the trace had these lengths.
    fn end_row(&mut self, before: Lengths, counts: Counts) {
        let after = self.lengths();
        self.pairs += counts.pairs();
        self.counts.push(counts);
        self.lengths.push(Lengths {
            chunks: after.chunks - before.chunks,
            differences: after.differences - before.differences,
        });
    }
}

/// What was found in all rows, as it was written down; columns are made of it when somebody asks.
#[derive(Debug, Default)]
pub struct Aligned {
    parts: Vec<Part>,
    /// How many threads may make columns.
    threads: usize,
}

impl Aligned {
    /// How many chunks and pairs there are in all rows: how long it takes to make columns of them.
    #[must_use]
    pub fn size(&self) -> usize {
        self.parts.iter().map(|part| part.trace.chunks() + part.pairs).sum()
    }

    /// The counts of each row.
    pub fn counts(&self) -> impl Iterator<Item = &Counts> {
        self.parts.iter().flat_map(|part| &part.counts)
    }

    /// The counts as columns, one behind the other, a field each.
    pub fn count_columns(&self, stop: &Stop<'_>) -> Result<Vec<i64>, Error> {
        let rows = self.counts().count();
        let mut columns = stop.room(Counts::NAMES.len() * rows);
        stop.check()?;
        columns.resize(Counts::NAMES.len() * rows, 0);
        let mut pace = Pace::default();
        for (row, counts) in self.counts().enumerate().take_while(|_| !pace.after_tokens(1, stop)) {
            for (field, value) in counts.values().into_iter().enumerate() {
                columns[field * rows + row] = value;
            }
        }
        stop.check().map(|()| columns)
    }

    /// The pairs of all rows, one row after the other.
    pub fn pairs(&self, stop: &Stop<'_>) -> Result<Pairs, Error> {
        let pairs = match &self.parts[..] {
            [part] => part.trace.pairs(part.pairs, stop),
            parts => self.pairs_of(parts, stop),
        };
        stop.check().map(|()| pairs)
    }

    /// The pairs of these parts, which write their own at the same time.
    fn pairs_of(&self, parts: &[Part], stop: &Stop<'_>) -> Pairs {
        let count = parts.iter().map(|part| part.pairs).sum();
        let (mut pairs, mut rooms) = (Pairs::room(count, stop), stop.room(parts.len()));
        if stop.is_set() {
            return pairs;
        }
        let write = |(part, room): (&Part, _)| part.trace.write_pairs(room, stop);
        let counts = parts.iter().map(|part| part.pairs);
        if let Some(pool) = pool::of_this_process(self.threads) {
            let columns = &mut pairs;
            pool::work(&pool, stop, move || {
                let Pairs { teacher, student, kind } = columns;
                rayon::join(|| teacher.resize(count, 0), || student.resize(count, 0));
                kind.resize(count, found::PairKind::Exact as u8);
                rooms.extend(parts.iter().zip(columns.cut(counts)));
                rooms.into_par_iter().for_each(write);
            });
        } else {
            pairs.teacher.resize(count, 0);
            pairs.student.resize(count, 0);
            pairs.kind.resize(count, found::PairKind::Exact as u8);
            parts.iter().zip(pairs.cut(counts)).for_each(write);
        }
        pairs
    }

    /// Where each row's part of the pairs begins, and where the last one ends.
    pub fn pair_offsets(&self, stop: &Stop<'_>) -> Result<Vec<i64>, Error> {
        self.offsets(stop, self.counts().map(Counts::pairs))
    }

    /// The chunks of all rows, and for each whether it encloses a token of zero width.
    pub fn chunks(&self, stop: &Stop<'_>) -> Result<(Ranges, Vec<bool>), Error> {
        let chunks = found::chunks_of(self.parts.iter().map(|part| &part.trace), stop);
        stop.check().map(|()| chunks)
    }

    /// Offsets of the chunks.
    pub fn chunk_offsets(&self, stop: &Stop<'_>) -> Result<Vec<i64>, Error> {
        self.offsets(stop, self.lengths().map(|row| row.chunks))
    }

    /// The differences of all rows.
    pub fn differences(&self, stop: &Stop<'_>) -> Result<Ranges, Error> {
        let differences = found::differences_of(self.parts.iter().map(|part| &part.trace), stop);
        stop.check().map(|()| differences)
    }

    /// Offsets of the differences.
    pub fn difference_offsets(&self, stop: &Stop<'_>) -> Result<Vec<i64>, Error> {
        self.offsets(stop, self.lengths().map(|row| row.differences))
    }

    fn lengths(&self) -> impl Iterator<Item = Lengths> {
        self.parts.iter().flat_map(|part| part.lengths.iter().copied())
    }

    /// From the lengths of all rows to offsets, one more than there are rows.
    fn offsets(&self, stop: &Stop<'_>, lengths: impl Iterator<Item = usize>) -> Result<Vec<i64>, Error> {
        let rows: usize = self.parts.iter().map(|part| part.counts.len()).sum();
        let mut offsets = stop.room(rows + 1);
        stop.check()?;
        let mut end = 0;
        offsets.push(end);
        offsets.extend(lengths.map(|length| {
            end += i64::try_from(length).expect("a length fits i64");
            end
        }));
        Ok(offsets)
    }
}

/// Aligns row `i` of the teacher with row `i` of the student, on at most this many threads and no more than
/// there are processors; fails soon after it was asked to stop, and where memory does not suffice.
pub fn align(
    stop: &Stop<'_>,
    aligner: &Aligner,
    rows: Sides<Rows<'_>>,
    threads: usize,
) -> Result<Aligned, Error> {
    let counts = rows.map(|side| side.count());
    if counts.teacher != counts.student {
        return Err(Error::RowCounts { teacher: counts.teacher, student: counts.student });
    }
    rows.teacher.check(Side::Teacher)?;
    rows.student.check(Side::Student)?;
    match (rows.teacher.ids, rows.student.ids) {
        (Ids::I32(teacher), Ids::I32(student)) => {
            align_typed(stop, aligner, rows, Sides { teacher, student }, threads)
        }
        (Ids::U32(teacher), Ids::U32(student)) => {
            align_typed(stop, aligner, rows, Sides { teacher, student }, threads)
        }
        (Ids::I64(teacher), Ids::I64(student)) => {
            align_typed(stop, aligner, rows, Sides { teacher, student }, threads)
        }
        _ => {
            let wide = rows.map(|side| side.ids.widened(stop));
            stop.check()?;
            align_typed(stop, aligner, rows, wide.as_ref().map(|ids| Values::Joined(ids)), threads)
        }
    }
}

/// The same where both sides' ids are of one type.
fn align_typed<T: Id + Sync>(
    stop: &Stop<'_>,
    aligner: &Aligner,
    rows: Sides<Rows<'_>>,
    ids: Sides<Values<'_, T>>,
    threads: usize,
) -> Result<Aligned, Error> {
    let typed = |side: Side, vocabulary| Typed { rows: rows[side], ids: ids[side], side, vocabulary };
    let sides = Sides {
        teacher: typed(Side::Teacher, aligner.teacher()),
        student: typed(Side::Student, aligner.student()),
    };
    let align = |rows: Range<usize>| align_rows(stop, aligner, sides, rows);
    let rows = rows.teacher.count();
    if threads > 1 && rows > 1 {
        let blocks = blocks_of_rows(sides, rows, stop);
        if let Some(pool) = (blocks.len() > 1).then(|| pool::of_this_process(threads)).flatten() {
            return Ok(Aligned { parts: in_pool(&pool, stop, blocks, align)?, threads });
        }
    }
    Ok(Aligned { parts: vec![align(0..rows)?], threads })
}

/// What this work gives for each block, in their order. Where memory is short it is an error: what holds the
/// parts is asked for before, since collecting them in the pool would end the process.
fn in_pool<T: Send>(
    pool: &ThreadPool,
    stop: &Stop<'_>,
    blocks: Vec<Range<usize>>,
    work: impl Fn(Range<usize>) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let (mut slots, mut parts) = (stop.room(blocks.len()), stop.room(blocks.len()));
    stop.check()?;
    slots.resize_with(blocks.len(), || None);
    pool::work(pool, stop, || {
        let pairs = blocks.into_par_iter().zip(slots.par_iter_mut());
        pairs.for_each(|(rows, slot)| *slot = Some(work(rows)));
    });
    for part in slots.into_iter().flatten() {
        parts.push(part?);
    }
    Ok(parts)
}

fn blocks_of_rows<T: Id>(sides: Sides<Typed<'_, T>>, rows: usize, stop: &Stop<'_>) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for row in 0..rows {
        tokens += sides.teacher.rows.range(row).len() + sides.student.rows.range(row).len();
        if tokens >= TOKENS_A_BLOCK {
            stop.push(&mut blocks, start..row + 1);
            (start, tokens) = (row + 1, 0);
        }
    }
    if start < rows {
        stop.push(&mut blocks, start..rows);
    }
    blocks
}

/// What aligning needs besides its input and output. Kept by the thread from batch to batch: where batches
/// are small, making it would take longer than using it.
#[derive(Default)]
struct Workspace {
    blocks: Blocks,
    /// The segments of the row at hand.
    segments: Sides<Vec<Range<usize>>>,
}

impl Workspace {
    /// Most segments of a row whose memory is kept.
    const KEPT: usize = 1 << 15;

    fn is_small(&self) -> bool {
        Side::BOTH.iter().all(|side| self.segments[*side].capacity() <= Self::KEPT)
    }
}

thread_local! {
    static WORKSPACE: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

fn align_rows<T: Id>(
    stop: &Stop<'_>,
    aligner: &Aligner,
    sides: Sides<Typed<'_, T>>,
    rows: Range<usize>,
) -> Result<Part, Error> {
    let tokens = sides.map(|side| side.tokens_in(&rows));
    let mut made = Part::room(rows.len(), tokens.teacher.min(tokens.student), stop);
    let mut work = WORKSPACE.take().unwrap_or_default();
    let mut pace = Pace::default();
    for row in rows {
        let Workspace { blocks, segments } = &mut *work;
        let cut = sides.zip(segments.as_mut()).map(|(side, segments)| side.row(row, stop, segments));
        pace.after_tokens(1 + cut.teacher.ids.len() + cut.student.ids.len(), stop);
        stop.check()?;
        let before = made.lengths();
        let counts = align_row(stop, aligner, cut, blocks, &mut made.trace);
        stop.check()?;
        // An id that is unknown was taken for an opaque one; nobody else needs to look.
        if counts.teacher_opaque + counts.student_opaque > 0 {
            sides.teacher.check(row, cut.teacher, stop)?;
            sides.student.check(row, cut.student, stop)?;
        }
        made.end_row(before, counts);
    }
    if work.is_small() {
        WORKSPACE.set(Some(work));
    }
    stop.check().map(|()| made)
}

/// Aligns the k-th segment with the k-th; what one side has more is a difference each, against the
/// place where the other side's last segment ends.
fn align_row<T: Id>(
    stop: &Stop<'_>,
    aligner: &Aligner,
    row: Sides<Row<'_, T>>,
    blocks: &mut Blocks,
    found: &mut Trace,
) -> Counts {
    let mut counts = Counts::default();
    let Sides { teacher, student } = row;
    let (teachers, students) = (teacher.segments.len(), student.segments.len());
    let shared = teachers.min(students);
    for number in 0..shared {
        let (teacher, student) = (teacher.segment(number), student.segment(number));
        align_segments(aligner, teacher, student, stop, blocks, found, &mut counts);
        if stop.is_set() {
            return counts;
        }
    }
    for number in shared..teachers {
        surplus_segments(aligner, teacher.segment(number), student.end(), stop, found, &mut counts);
    }
    for number in shared..students {
        surplus_segments(aligner, teacher.end(), student.segment(number), stop, found, &mut counts);
    }
    counts.segment_mismatch = i64::from(teachers != students);
    counts
}
