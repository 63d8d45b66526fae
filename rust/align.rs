//! One pair of token sequences -> pairs, chunks and differences. Slices in, slices out, no threads.
//!
//! * `walk`: both sides of a segment, from place to place
//! * `cursor`: where one side stands
//! * `spaces`: the one space, and how long a run of spaces is
//! * `roles`: which specials pair
//!
//! Every loop moves forward over tokens or bytes that it has not seen, but for three: the measuring of runs
//! of spaces remembers how far it looked, so does the search among specials that share no role, and what was
//! read of a chunk that does not end is counted, until the search has no patience left. So the walk is linear
//! whatever the input.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::blocks::Blocks;
use crate::found::Trace;
pub use crate::found::{Counted, Counts, PairKind, Pairs, Ranges};
use crate::side::{Side, Sides};
use crate::stop::{Pace, Stop};
use crate::vocabulary::{Id, Kind, Vocabulary};
use roles::Roles;
use walk::Walk;

mod cursor;
mod roles;
mod spaces;
mod walk;

/// The two vocabularies and the roles that their specials share: all that alignment needs to know.
#[derive(Debug)]
pub struct Aligner {
    vocabularies: Sides<Arc<Vocabulary>>,
    roles: Sides<Roles>,
}

impl Aligner {
    /// An aligner of texts in these two vocabularies.
    #[must_use]
    pub fn new(teacher: Arc<Vocabulary>, student: Arc<Vocabulary>) -> Self {
        let roles = roles::shared(Sides { teacher: &teacher, student: &student });
        Self { vocabularies: Sides { teacher, student }, roles }
    }

    /// The teacher's vocabulary.
    #[must_use]
    pub fn teacher(&self) -> &Vocabulary {
        &self.vocabularies.teacher
    }

    /// The student's vocabulary.
    #[must_use]
    pub fn student(&self) -> &Vocabulary {
        &self.vocabularies.student
    }
}

/// A stretch of one row on one side: its ids, and the column of the first. An id that is not in the vocabulary
/// is taken for an opaque one.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a, T> {
    /// The ids.
    pub tokens: &'a [T],
    /// Where the first of them stands in its row.
    pub column: usize,
}

impl<T> Segment<'_, T> {
    /// The segment of no tokens that stands here.
    #[must_use]
    pub fn empty(column: usize) -> Self {
        Self { tokens: &[], column }
    }

    /// The column after the last token.
    #[must_use]
    pub fn end(&self) -> usize {
        self.column + self.tokens.len()
    }
}

/// Aligns two segments as texts of their own; appends what it finds and counts it. Where it was asked to
/// stop, what it found is good for nothing.
pub fn align_segments<T: Id>(
    aligner: &Aligner,
    teacher: Segment<'_, T>,
    student: Segment<'_, T>,
    stop: &Stop<'_>,
    blocks: &mut Blocks,
    found: &mut Trace,
    counts: &mut Counts,
) {
    Walk::new(aligner, Sides { teacher, student }, stop, blocks, found, counts).go();
}

/// Records a segment that has no counterpart; the empty side stands where it is given.
pub fn surplus_segments<T: Id>(
    aligner: &Aligner,
    teacher: Segment<'_, T>,
    student: Segment<'_, T>,
    stop: &Stop<'_>,
    found: &mut Trace,
    counts: &mut Counts,
) {
    counts.add(Side::Teacher, count_text(aligner.teacher(), teacher.tokens, stop));
    counts.add(Side::Student, count_text(aligner.student(), student.tokens, stop));
    if !(teacher.tokens.is_empty() && student.tokens.is_empty()) {
        found.push_difference(teacher.column..teacher.end(), student.column..student.end(), stop);
    }
}

/// Tokens of which is asked once whether to stop.
const AT_ONCE: usize = 1 << 12;

/// What these tokens add to the counts; anything where there is a reason to stop.
fn count_text(vocabulary: &Vocabulary, tokens: &[impl Id], stop: &Stop<'_>) -> Counted {
    let mut counted = Counted::default();
    let mut pace = Pace::default();
    for tokens in tokens.chunks(AT_ONCE) {
        for token in tokens {
            let length = length_as_count(vocabulary.bytes(*token).len());
            counted.tokens += i64::from(length > 0);
            counted.bytes += length;
            counted.opaque += i64::from(vocabulary.kind(*token) == Kind::Opaque);
        }
        if pace.after_tokens(tokens.len(), stop) {
            break;
        }
    }
    counted
}

fn length_as_count(length: usize) -> i64 {
    i64::try_from(length).expect("a length fits i64")
}
