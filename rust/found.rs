//! What alignment finds: written down shortly as it is found, and the columns made of it that callers read.
//!
//! A chunk of plain text takes four bytes in a [`Trace`], and thirty in columns, of which most callers read
//! some. Columns are made when somebody asks.

#![forbid(unsafe_code)]

use std::ops::{Add, Range};

use crate::blocks::{Common, Place};
use crate::side::Side;

/// What makes a teacher token and a student token the same token of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PairKind {
    /// Same span, same bytes.
    Exact = 0,
    /// Two specials that share a role, at the same place.
    Role = 1,
    /// Exact but for the one space, which one of the two held.
    Space = 2,
}

/// Token pairs, a column each. Positions are columns of the row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Positions on the teacher's side.
    pub teacher: Vec<i32>,
    /// Positions on the student's side.
    pub student: Vec<i32>,
    /// A [`PairKind`] each, as a number.
    pub kind: Vec<u8>,
}

/// A stretch of the columns of [`Pairs`], to be written.
#[derive(Debug)]
pub struct PairsMut<'a> {
    teacher: &'a mut [i32],
    student: &'a mut [i32],
    kind: &'a mut [u8],
}

impl Pairs {
    /// So many, still to be written; the kind of each is exact.
    #[must_use]
    pub fn unwritten(count: usize) -> Self {
        Self { teacher: vec![0; count], student: vec![0; count], kind: vec![PairKind::Exact as u8; count] }
    }

    /// Cuts the columns into stretches of so many pairs each.
    pub fn cut(&mut self, counts: impl Iterator<Item = usize>) -> impl Iterator<Item = PairsMut<'_>> {
        let mut rest = (&mut self.teacher[..], &mut self.student[..], &mut self.kind[..]);
        counts.map(move |count| {
            let cut = "there are as many";
            PairsMut {
                teacher: rest.0.split_off_mut(..count).expect(cut),
                student: rest.1.split_off_mut(..count).expect(cut),
                kind: rest.2.split_off_mut(..count).expect(cut),
            }
        })
    }
}

/// Ranges of teacher tokens and of student tokens that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First teacher token.
    pub teacher_start: Vec<i32>,
    /// One past the last teacher token.
    pub teacher_end: Vec<i32>,
    /// First student token.
    pub student_start: Vec<i32>,
    /// One past the last student token.
    pub student_end: Vec<i32>,
}

/// What tokens of one side add to the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Tokens that have bytes.
    pub tokens: i64,
    /// Their bytes.
    pub bytes: i64,
    /// Tokens whose bytes are unknown.
    pub opaque: i64,
}

impl Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            bytes: self.bytes + other.bytes,
            opaque: self.opaque + other.opaque,
        }
    }
}

/// Numerators and denominators of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Selected teacher tokens that have bytes.
    pub teacher_tokens: i64,
    /// Selected student tokens that have bytes.
    pub student_tokens: i64,
    /// Bytes of the selected teacher text.
    pub teacher_bytes: i64,
    /// Bytes of the selected student text.
    pub student_bytes: i64,
    /// Bytes in chunks, the same on both sides.
    pub chunk_bytes: i64,
    /// Selected teacher tokens whose bytes are unknown.
    pub teacher_opaque: i64,
    /// Selected student tokens whose bytes are unknown.
    pub student_opaque: i64,
    /// Pairs of kind exact.
    pub exact: i64,
    /// Pairs of kind role.
    pub role: i64,
    /// Pairs of kind space.
    pub space: i64,
    /// One if one side has more segments than the other.
    pub segment_mismatch: i64,
}

impl Counts {
    /// Adds tokens of a side.
    pub fn add(&mut self, side: Side, counted: Counted) {
        let [tokens, bytes, opaque] = match side {
            Side::Teacher => [&mut self.teacher_tokens, &mut self.teacher_bytes, &mut self.teacher_opaque],
            Side::Student => [&mut self.student_tokens, &mut self.student_bytes, &mut self.student_opaque],
        };
        *tokens += counted.tokens;
        *bytes += counted.bytes;
        *opaque += counted.opaque;
    }
}

/// Everything found in one row or in many rows that follow each other, in columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The same tokens of the text.
    pub pairs: Pairs,
    /// Smallest runs of tokens that cover the same bytes.
    pub chunks: Ranges,
    /// For each chunk, whether it encloses a token of zero width.
    pub encloses: Vec<bool>,
    /// Runs of tokens whose bytes differ.
    pub differences: Ranges,
}

impl Ranges {
    fn with_capacity(count: usize) -> Self {
        Self {
            teacher_start: Vec::with_capacity(count),
            teacher_end: Vec::with_capacity(count),
            student_start: Vec::with_capacity(count),
            student_end: Vec::with_capacity(count),
        }
    }

    /// How many they are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.teacher_start.len()
    }

    fn push(&mut self, teacher: Range<i32>, student: Range<i32>) {
        self.teacher_start.push(teacher.start);
        self.teacher_end.push(teacher.end);
        self.student_start.push(student.start);
        self.student_end.push(student.end);
    }

    fn append(&mut self, other: &Self) {
        self.teacher_start.extend_from_slice(&other.teacher_start);
        self.teacher_end.extend_from_slice(&other.teacher_end);
        self.student_start.extend_from_slice(&other.student_start);
        self.student_end.extend_from_slice(&other.student_end);
    }
}

impl Found {
    /// Puts what another part found behind this; columns stay those of the rows.
    pub fn append(&mut self, mut other: Self) {
        self.pairs.teacher.append(&mut other.pairs.teacher);
        self.pairs.student.append(&mut other.pairs.student);
        self.pairs.kind.append(&mut other.pairs.kind);
        self.chunks.append(&other.chunks);
        self.encloses.append(&mut other.encloses);
        self.differences.append(&other.differences);
    }
}

/// What was found in the rows of one part of a batch, in the order of the text.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    steps: Vec<Step>,
    /// The ends of the chunks of all blocks.
    places: Vec<Place>,
    chunks: usize,
    differences: Ranges,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The chunks that end at the next so many places; the first begins at these columns.
    Block { teacher: i32, student: i32, places: u32, space: bool },
    /// One chunk.
    Chunk { teacher: (i32, i32), student: (i32, i32), encloses: bool, space: bool },
    /// Two specials of one role.
    Role { teacher: i32, student: i32 },
}

/// Of so many chunks those that are pairs are picked before they are written.
const AT_ONCE: usize = 256;

impl Trace {
    /// Nothing yet, and room for this many chunks in blocks.
    #[must_use]
    pub fn with_capacity(chunks: usize) -> Self {
        Self { places: Vec::with_capacity(chunks), ..Self::default() }
    }

    /// Chunks so far.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Differences.
    #[must_use]
    pub fn differences(&self) -> &Ranges {
        &self.differences
    }

    /// What [`forget`](Self::forget) goes back to.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Forgets pairs of roles that were found since.
    pub fn forget(&mut self, steps: usize) {
        self.steps.truncate(steps);
    }

    /// The chunks of a block that begins at these columns, its first tokens without the one space where one
    /// of them held it.
    pub fn push_block(&mut self, common: &Common<'_>, teacher: usize, student: usize, space: bool) {
        let places = u32::try_from(common.ends.len()).expect("a block is small");
        self.places.extend_from_slice(common.ends);
        self.chunks += common.ends.len();
        let (teacher, student) = (column_number(teacher), column_number(student));
        self.steps.push(Step::Block { teacher, student, places, space });
    }

    /// One chunk of these columns.
    pub fn push_chunk(&mut self, teacher: Range<usize>, student: Range<usize>, space: bool, encloses: bool) {
        let columns = |range: Range<usize>| (column_number(range.start), column_number(range.end));
        self.chunks += 1;
        self.steps.push(Step::Chunk {
            teacher: columns(teacher),
            student: columns(student),
            encloses,
            space,
        });
    }

    /// Two specials of one role, in these columns.
    pub fn push_role(&mut self, teacher: usize, student: usize) {
        self.steps.push(Step::Role { teacher: column_number(teacher), student: column_number(student) });
    }

    /// A difference of these columns.
    pub fn push_difference(&mut self, teacher: Range<usize>, student: Range<usize>) {
        self.differences.push(
            column_number(teacher.start)..column_number(teacher.end),
            column_number(student.start)..column_number(student.end),
        );
    }

    /// The steps, each with its places.
    fn read(&self) -> impl Iterator<Item = (Step, &[Place])> {
        let mut rest = &self.places[..];
        self.steps.iter().map(move |step| {
            let count = if let Step::Block { places, .. } = step { *places as usize } else { 0 };
            let (places, behind) = rest.split_at(count);
            rest = behind;
            (*step, places)
        })
    }

    /// The pairs, so many.
    #[must_use]
    pub fn pairs(&self, count: usize) -> Pairs {
        let mut pairs = Pairs {
            teacher: Vec::with_capacity(count),
            student: Vec::with_capacity(count),
            kind: vec![PairKind::Exact as u8; count],
        };
        let Pairs { teacher: teachers, student: students, kind: kinds } = &mut pairs;
        self.pick_pairs(|starts, (teacher, student), first| {
            if first != PairKind::Exact {
                kinds[teachers.len()] = first as u8;
            }
            teachers.extend(starts.iter().map(|start| teacher + i32::from(start.teacher())));
            students.extend(starts.iter().map(|start| student + i32::from(start.student())));
        });
        debug_assert_eq!(teachers.len(), count);
        pairs
    }

    /// The same, written into columns that have room for just these.
    pub fn write_pairs(&self, room: PairsMut<'_>) {
        let PairsMut { teacher: teachers, student: students, kind: kinds } = room;
        let mut at = 0;
        self.pick_pairs(|starts, (teacher, student), first| {
            let end = at + starts.len();
            if first != PairKind::Exact {
                kinds[at] = first as u8;
            }
            for (to, start) in teachers[at..end].iter_mut().zip(starts) {
                *to = teacher + i32::from(start.teacher());
            }
            for (to, start) in students[at..end].iter_mut().zip(starts) {
                *to = student + i32::from(start.student());
            }
            at = end;
        });
        debug_assert_eq!(at, kinds.len());
    }

    /// Hands over where pairs begin, a few at once: places, the columns from which they count, and the kind of
    /// the first; the others are exact.
    ///
    /// Without a branch for each chunk: what is picked and is no pair is written over.
    fn pick_pairs(&self, mut found: impl FnMut(&[Place], (i32, i32), PairKind)) {
        let here = [Place::default()];
        let kind_of = |space: bool| if space { PairKind::Space } else { PairKind::Exact };
        let mut starts = [Place::default(); AT_ONCE];
        for (step, places) in self.read() {
            match step {
                Step::Block { teacher, student, space, .. } => {
                    let mut first = kind_of(space && places[0].follows(Place::default()));
                    let mut start = Place::default();
                    for places in places.chunks(AT_ONCE) {
                        let mut count = 0;
                        for end in places {
                            starts[count % AT_ONCE] = start;
                            count += usize::from(end.follows(start));
                            start = *end;
                        }
                        found(&starts[..count], (teacher, student), first);
                        first = PairKind::Exact;
                    }
                }
                Step::Chunk { teacher, student, space, .. } => {
                    if teacher.1 - teacher.0 == 1 && student.1 - student.0 == 1 {
                        found(&here, (teacher.0, student.0), kind_of(space));
                    }
                }
                Step::Role { teacher, student } => found(&here, (teacher, student), PairKind::Role),
            }
        }
    }

    /// Appends the chunks to columns, and for each whether it encloses a token of zero width.
    fn append_chunks(&self, chunks: &mut Ranges, encloses: &mut Vec<bool>) {
        for (step, places) in self.read() {
            match step {
                Step::Block { teacher, student, .. } => {
                    let teachers = |place: &Place| teacher + i32::from(place.teacher());
                    let students = |place: &Place| student + i32::from(place.student());
                    let starts = &places[..places.len() - 1];
                    chunks.teacher_start.push(teacher);
                    chunks.teacher_start.extend(starts.iter().map(teachers));
                    chunks.teacher_end.extend(places.iter().map(teachers));
                    chunks.student_start.push(student);
                    chunks.student_start.extend(starts.iter().map(students));
                    chunks.student_end.extend(places.iter().map(students));
                    encloses.resize(encloses.len() + places.len(), false);
                }
                Step::Chunk { teacher, student, encloses: one, .. } => {
                    chunks.push(teacher.0..teacher.1, student.0..student.1);
                    encloses.push(one);
                }
                Step::Role { .. } => {}
            }
        }
    }
}

/// The chunks of all parts, and for each whether it encloses a token of zero width.
#[must_use]
pub fn chunks_of(parts: &[Trace]) -> (Ranges, Vec<bool>) {
    let count = parts.iter().map(Trace::chunks).sum();
    let mut chunks = Ranges::with_capacity(count);
    let mut encloses = Vec::with_capacity(count);
    for part in parts {
        part.append_chunks(&mut chunks, &mut encloses);
    }
    (chunks, encloses)
}

/// The differences of all parts.
#[must_use]
pub fn differences_of(parts: &[Trace]) -> Ranges {
    let mut differences = Ranges::default();
    for part in parts {
        differences.append(&part.differences);
    }
    differences
}

/// A column as the results hold it.
fn column_number(column: usize) -> i32 {
    i32::try_from(column).expect("batch refuses rows that int32 cannot index")
}
