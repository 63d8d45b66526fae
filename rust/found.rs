//! What alignment finds: written down shortly as it is found, and the columns made of it that callers read.
//!
//! A chunk of plain text takes four bytes in a [`Trace`], and thirty in columns, of which most callers read
//! some. Columns are made when somebody asks.

#![forbid(unsafe_code)]

use std::ops::{Add, Range};

use crate::blocks::{Common, Place};
use crate::side::{Side, Sides};
use crate::stop::{Pace, Stop};

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
    /// Room for so many; none where memory does not suffice.
    #[must_use]
    pub fn room(count: usize, stop: &Stop<'_>) -> Self {
        Self { teacher: stop.room(count), student: stop.room(count), kind: stop.room(count) }
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

/// Writes the fields of the counts down once: the struct, their names and their values in one order.
macro_rules! counts {
    ($($(#[$what:meta])* $name:ident,)*) => {
        /// Numerators and denominators of one row.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$what])* pub $name: i64,)*
        }

        impl Counts {
            /// What the fields are called.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// The fields, in the order of their names.
            #[must_use]
            pub fn values(&self) -> [i64; Self::NAMES.len()] {
                [$(self.$name),*]
            }
        }
    };
}

counts! {
    /// Selected teacher tokens that have bytes.
    teacher_tokens,
    /// Selected student tokens that have bytes.
    student_tokens,
    /// Bytes of the selected teacher text.
    teacher_bytes,
    /// Bytes of the selected student text.
    student_bytes,
    /// Bytes in chunks, the same on both sides.
    chunk_bytes,
    /// Selected teacher tokens whose bytes are unknown.
    teacher_opaque,
    /// Selected student tokens whose bytes are unknown.
    student_opaque,
    /// Pairs of kind exact.
    exact,
    /// Pairs of kind role.
    role,
    /// Pairs of kind space.
    space,
    /// One if one side has more segments than the other.
    segment_mismatch,
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

    /// How many pairs there are.
    #[must_use]
    pub fn pairs(&self) -> usize {
        usize::try_from(self.exact + self.role + self.space).expect("counts are not negative")
    }
}

impl Ranges {
    /// Room for so many; none where memory does not suffice.
    fn room(count: usize, stop: &Stop<'_>) -> Self {
        Self {
            teacher_start: stop.room(count),
            teacher_end: stop.room(count),
            student_start: stop.room(count),
            student_end: stop.room(count),
        }
    }

    fn columns(&mut self) -> [&mut Vec<i32>; 4] {
        [&mut self.teacher_start, &mut self.teacher_end, &mut self.student_start, &mut self.student_end]
    }

    /// How many they are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.teacher_start.len()
    }

    fn push(&mut self, start: Sides<i32>, end: Sides<i32>, stop: &Stop<'_>) {
        let has_room = self.columns().into_iter().all(|column| stop.reserve(column, 1));
        if has_room {
            self.teacher_start.push(start.teacher);
            self.teacher_end.push(end.teacher);
            self.student_start.push(start.student);
            self.student_end.push(end.student);
        }
    }

    fn extend(&mut self, other: &Self) {
        self.teacher_start.extend_from_slice(&other.teacher_start);
        self.teacher_end.extend_from_slice(&other.teacher_end);
        self.student_start.extend_from_slice(&other.student_start);
        self.student_end.extend_from_slice(&other.student_end);
    }
}

/// What was found in the rows of one part of a batch, in the order of the text.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    stretches: Vec<Stretch>,
    /// The ends of the chunks of all blocks.
    places: Vec<Place>,
    chunks: usize,
    differences: Ranges,
}

#[derive(Clone, Copy, Debug)]
enum Stretch {
    /// The chunks that end at the next so many places; the first begins at these columns.
    Block { start: Sides<i32>, places: u32, space: bool },
    /// One chunk.
    Chunk { start: Sides<i32>, end: Sides<i32>, encloses: bool, space: bool },
    /// Two specials of one role.
    Role { at: Sides<i32> },
}

/// Of so many chunks those that are pairs are picked before they are written.
const AT_ONCE: usize = 256;

impl Trace {
    /// Nothing yet, and room for this many chunks in blocks; none where memory does not suffice.
    #[must_use]
    pub fn room(chunks: usize, stop: &Stop<'_>) -> Self {
        Self { places: stop.room(chunks), ..Self::default() }
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
    pub fn stretches(&self) -> usize {
        self.stretches.len()
    }

    /// Forgets pairs of roles that were found since.
    pub fn forget(&mut self, stretches: usize) {
        self.stretches.truncate(stretches);
    }

    /// The chunks of a block that begins at these columns, its first tokens without the one space where one
    /// of them held it.
    pub fn push_block(
        &mut self,
        common: &Common<'_>,
        teacher: usize,
        student: usize,
        space: bool,
        stop: &Stop<'_>,
    ) {
        let places = u32::try_from(common.ends.len()).expect("a block is small");
        if !stop.reserve(&mut self.places, common.ends.len()) {
            return;
        }
        self.places.extend_from_slice(common.ends);
        self.chunks += common.ends.len();
        let start = Sides { teacher, student }.map(column_number);
        stop.push(&mut self.stretches, Stretch::Block { start, places, space });
    }

    /// One chunk of these columns.
    pub fn push_chunk(
        &mut self,
        teacher: Range<usize>,
        student: Range<usize>,
        space: bool,
        encloses: bool,
        stop: &Stop<'_>,
    ) {
        let columns = Sides { teacher, student };
        let start = columns.as_ref().map(|columns| column_number(columns.start));
        let end = columns.map(|columns| column_number(columns.end));
        self.chunks += 1;
        stop.push(&mut self.stretches, Stretch::Chunk { start, end, encloses, space });
    }

    /// Two specials of one role, in these columns.
    pub fn push_role(&mut self, teacher: usize, student: usize, stop: &Stop<'_>) {
        let at = Sides { teacher, student }.map(column_number);
        stop.push(&mut self.stretches, Stretch::Role { at });
    }

    /// A difference of these columns.
    pub fn push_difference(&mut self, teacher: Range<usize>, student: Range<usize>, stop: &Stop<'_>) {
        let columns = Sides { teacher, student };
        let start = columns.as_ref().map(|columns| column_number(columns.start));
        self.differences.push(start, columns.map(|columns| column_number(columns.end)), stop);
    }

    /// The stretches, each with its places, until there is a reason to stop.
    fn read(&self, stop: &Stop<'_>) -> impl Iterator<Item = (Stretch, &[Place])> {
        let mut rest = &self.places[..];
        let mut pace = Pace::default();
        self.stretches.iter().map_while(move |stretch| {
            let count = if let Stretch::Block { places, .. } = stretch { *places as usize } else { 0 };
            let (places, behind) = rest.split_at(count);
            rest = behind;
            (!pace.after_tokens(1 + count, stop)).then_some((*stretch, places))
        })
    }

    /// The pairs, so many, if there is room for them; good for nothing if there was a reason to stop.
    #[must_use]
    pub fn pairs(&self, count: usize, stop: &Stop<'_>) -> Pairs {
        let mut pairs = Pairs::room(count, stop);
        if stop.is_set() {
            return pairs;
        }
        pairs.kind.resize(count, PairKind::Exact as u8);
        let Pairs { teacher: teachers, student: students, kind: kinds } = &mut pairs;
        self.pick_pairs(stop, |starts, start, first| {
            if first != PairKind::Exact {
                kinds[teachers.len()] = first as u8;
            }
            teachers.extend(starts.iter().map(|place| start.teacher + i32::from(place.teacher())));
            students.extend(starts.iter().map(|place| start.student + i32::from(place.student())));
        });
        debug_assert!(stop.is_set() || teachers.len() == count);
        pairs
    }

    /// The same, written into columns that have room for just these.
    pub fn write_pairs(&self, room: PairsMut<'_>, stop: &Stop<'_>) {
        let PairsMut { teacher: teachers, student: students, kind: kinds } = room;
        let mut at = 0;
        self.pick_pairs(stop, |starts, start, first| {
            let end = at + starts.len();
            if first != PairKind::Exact {
                kinds[at] = first as u8;
            }
            for (to, place) in teachers[at..end].iter_mut().zip(starts) {
                *to = start.teacher + i32::from(place.teacher());
            }
            for (to, place) in students[at..end].iter_mut().zip(starts) {
                *to = start.student + i32::from(place.student());
            }
            at = end;
        });
        debug_assert!(stop.is_set() || at == kinds.len());
    }

    /// Hands over where pairs begin, a few at once: places, the columns from which they count, and the kind of
    /// the first; the others are exact.
    ///
    /// Without a branch for each chunk: what is picked and is no pair is written over.
    fn pick_pairs(&self, stop: &Stop<'_>, mut found: impl FnMut(&[Place], Sides<i32>, PairKind)) {
        let here = [Place::default()];
        let kind_of = |space: bool| if space { PairKind::Space } else { PairKind::Exact };
        let mut starts = [Place::default(); AT_ONCE];
        for (stretch, places) in self.read(stop) {
            match stretch {
                Stretch::Block { start, space, .. } => {
                    let mut first = kind_of(space && places[0].follows(Place::default()));
                    let mut before = Place::default();
                    for places in places.chunks(AT_ONCE) {
                        let mut count = 0;
                        for end in places {
                            starts[count % AT_ONCE] = before;
                            count += usize::from(end.follows(before));
                            before = *end;
                        }
                        found(&starts[..count], start, first);
                        first = PairKind::Exact;
                    }
                }
                Stretch::Chunk { start, end, space, .. } => {
                    if end.teacher - start.teacher == 1 && end.student - start.student == 1 {
                        found(&here, start, kind_of(space));
                    }
                }
                Stretch::Role { at } => found(&here, at, PairKind::Role),
            }
        }
    }

    /// Appends the chunks to columns that have room for them, and for each whether it encloses a token of zero
    /// width.
    fn append_chunks(&self, chunks: &mut Ranges, encloses: &mut Vec<bool>, stop: &Stop<'_>) {
        for (stretch, places) in self.read(stop) {
            match stretch {
                Stretch::Block { start, .. } => {
                    let teachers = |place: &Place| start.teacher + i32::from(place.teacher());
                    let students = |place: &Place| start.student + i32::from(place.student());
                    let starts = &places[..places.len() - 1];
                    chunks.teacher_start.push(start.teacher);
                    chunks.teacher_start.extend(starts.iter().map(teachers));
                    chunks.teacher_end.extend(places.iter().map(teachers));
                    chunks.student_start.push(start.student);
                    chunks.student_start.extend(starts.iter().map(students));
                    chunks.student_end.extend(places.iter().map(students));
                    encloses.resize(encloses.len() + places.len(), false);
                }
                Stretch::Chunk { start, end, encloses: one, .. } => {
                    chunks.push(start, end, stop);
                    encloses.push(one);
                }
                Stretch::Role { .. } => {}
            }
        }
    }
}

/// The chunks of all parts, and for each whether it encloses a token of zero width; good for nothing if there
/// was a reason to stop.
#[must_use]
pub fn chunks_of<'a>(parts: impl Iterator<Item = &'a Trace> + Clone, stop: &Stop<'_>) -> (Ranges, Vec<bool>) {
    let count = parts.clone().map(Trace::chunks).sum();
    let mut chunks = Ranges::room(count, stop);
    let mut encloses = stop.room(count);
    for part in parts.take_while(|_| !stop.is_set()) {
        part.append_chunks(&mut chunks, &mut encloses, stop);
    }
    (chunks, encloses)
}

/// The differences of all parts; good for nothing if there was a reason to stop.
#[must_use]
pub fn differences_of<'a>(parts: impl Iterator<Item = &'a Trace> + Clone, stop: &Stop<'_>) -> Ranges {
    let count = parts.clone().map(|part| part.differences.len()).sum();
    let mut differences = Ranges::room(count, stop);
    for part in parts.take_while(|_| !stop.is_set()) {
        differences.extend(&part.differences);
    }
    differences
}

/// A column as the results hold it.
fn column_number(column: usize) -> i32 {
    i32::try_from(column).expect("batch refuses rows that int32 cannot index")
}
