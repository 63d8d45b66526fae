//! Plain text on both sides, block by block: where the ends of tokens coincide. The fast form of the walk.
//!
//! The bytes of the student's tokens are laid one after the other, and each token's number is marked at the
//! byte where it ends; the bytes of the teacher's tokens are laid beside them, and at each end the mark is
//! read: one that is set is a common end. Nothing branches on what is found. One comparison of the two texts
//! then checks the content. A block is small, so that texts, marks and ends stay in the first cache.
//!
//! Invariant: between two calls no mark is set.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::vocabulary::{Id, RECORD, Vocabulary};

/// Bytes of text in a block, a power of two so that a mask keeps every index within; its tokens fit 16 bits.
const TEXT: usize = 1 << 12;
const MASK: usize = TEXT - 1;
/// Two records fit the text where they begin before this.
const LIMIT: usize = TEXT - 2 * RECORD;
/// Tokens of the student in the first block behind what is not plain text ...
const FEWEST_TOKENS: usize = 32;
/// ... and in the first block of all.
const FIRST_TOKENS: usize = 256;

/// One side, from the token at hand on.
#[derive(Clone, Copy)]
pub struct Plain<'a, T> {
    /// What the tokens are.
    pub vocabulary: &'a Vocabulary,
    /// The token at hand and those behind it.
    pub tokens: &'a [T],
    /// What is left of the bytes of the token at hand; not empty.
    pub rest: &'a [u8],
}

impl<T: Id> Plain<'_, T> {
    /// Whether a dummy prefix may stand behind so many tokens.
    fn prefix_may_follow(&self, tokens: u16) -> bool {
        self.vocabulary.prefix_may_follow(self.tokens[usize::from(tokens) - 1])
    }

    /// How many bytes these tokens have.
    fn length_of(&self, tokens: Range<usize>) -> usize {
        let lengths = self.tokens[tokens.clone()].iter().map(|token| self.vocabulary.bytes(*token).len());
        let read = if tokens.contains(&0) {
            self.vocabulary.bytes(self.tokens[0]).len() - self.rest.len()
        } else {
            0
        };
        lengths.sum::<usize>() - read
    }
}

/// A place in a block: so many tokens of the teacher are before it, in the upper half, and so many of the
/// student, in the lower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// One token further on both sides.
    const PAIR: u32 = 0x0001_0001;

    /// Tokens of the teacher before it.
    #[must_use]
    pub fn teacher(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Tokens of the student before it.
    #[must_use]
    pub fn student(self) -> u16 {
        (self.0 & 0xFFFF) as u16
    }

    /// Whether it is one token behind this place on both sides: between them lies a pair.
    #[must_use]
    pub fn follows(self, start: Self) -> bool {
        self.0 == start.0.wrapping_add(Self::PAIR)
    }
}

/// What a block has in common.
#[derive(Clone, Copy)]
pub struct Common<'a> {
    /// Where tokens of both sides end, in order; the first chunk begins where the block does.
    pub ends: &'a [Place],
    /// Bytes before the last end.
    pub bytes: usize,
}

impl Common<'_> {
    /// How many of the chunks are pairs.
    #[must_use]
    pub fn pairs(&self) -> usize {
        let behind = self.ends.iter().skip(1).zip(self.ends).filter(|(end, start)| end.follows(**start));
        usize::from(self.begins_with_pair()) + behind.count()
    }

    /// Whether the first chunk is a pair.
    #[must_use]
    pub fn begins_with_pair(&self) -> bool {
        self.ends.first().is_some_and(|end| end.follows(Place::default()))
    }
}

/// The memory in which blocks are laid out.
pub struct Blocks {
    teacher_text: Box<[u8; TEXT + RECORD]>,
    student_text: Box<[u8; TEXT + RECORD]>,
    /// For each byte position how many tokens of the student end there or before, 0 where none ends.
    marks: Box<[u16; TEXT]>,
    ends: Box<[Place; TEXT]>,
    /// Tokens of the student that the next block may have.
    reach: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            teacher_text: Box::new([0; TEXT + RECORD]),
            student_text: Box::new([0; TEXT + RECORD]),
            marks: Box::new([0; TEXT]),
            ends: Box::new([Place::default(); TEXT]),
            reach: FIRST_TOKENS,
        }
    }
}

impl Blocks {
    /// The common ends of the tokens that follow on both sides, as far as these are plain text; none where
    /// none is near. More may follow behind the last.
    pub fn next<T: Id>(&mut self, teacher: Plain<'_, T>, student: Plain<'_, T>) -> Common<'_> {
        let laid = self.lay_student(student);
        let (mut found, mut bytes) = self.lay_teacher(teacher, laid.bytes);
        self.marks[..=laid.bytes].fill(0);
        if self.teacher_text[..bytes] != self.student_text[..bytes] {
            let agree = agreement(&self.teacher_text[..bytes], &self.student_text[..bytes]);
            (found, bytes) = self.ends_within(agree, teacher, found);
        }
        if teacher.vocabulary.inner_prefixes() || student.vocabulary.inner_prefixes() {
            (found, bytes) = self.ends_to_inner_prefix(teacher, student, found, bytes);
        }
        let used = found.checked_sub(1).map_or(0, |last| usize::from(self.ends[last].student()));
        self.reach = if 2 * used < laid.tokens { FEWEST_TOKENS } else { (self.reach * 8).min(TEXT) };
        Common { ends: &self.ends[..found], bytes }
    }

    /// For itself, so that the registers of its loop are its own, whatever it is called from.
    #[inline(never)]
    fn lay_student(&mut self, student: Plain<'_, impl Id>) -> Laid {
        let tokens = &student.tokens[..student.tokens.len().min(self.reach)];
        let marks = &mut *self.marks;
        lay::<1>(&mut self.student_text, LIMIT, Plain { tokens, ..student }, |tokens, bytes| {
            marks[bytes & MASK] = (tokens & 0xFFFF) as u16;
        })
    }

    /// How many common ends there are, and the bytes before the last.
    #[inline(never)]
    fn lay_teacher(&mut self, teacher: Plain<'_, impl Id>, student_bytes: usize) -> (usize, usize) {
        let (marks, ends) = (&*self.marks, &mut *self.ends);
        let mut found = 0;
        // Behind the student's text there are no marks.
        let laid =
            lay::<{ 1 << 16 }>(&mut self.teacher_text, student_bytes.min(LIMIT), teacher, |tokens, bytes| {
                let mark = marks[bytes & MASK];
                ends[found & MASK] = Place(tokens | u32::from(mark));
                found += usize::from(mark != 0);
            });
        (found, laid.bytes - teacher.length_of(self.last_token(found)..laid.tokens))
    }

    /// The common ends, of those found, in so many bytes, and the bytes before the last.
    fn ends_within(&self, agree: usize, teacher: Plain<'_, impl Id>, found: usize) -> (usize, usize) {
        let (mut within, mut last, mut bytes) = (0, 0, 0);
        for (at, token) in teacher.tokens.iter().enumerate() {
            bytes += if at == 0 { teacher.rest.len() } else { teacher.vocabulary.bytes(*token).len() };
            if bytes > agree || within == found {
                break;
            }
            if usize::from(self.ends[within].teacher()) == at + 1 {
                (within, last) = (within + 1, bytes);
            }
        }
        (within, last)
    }

    /// The common ends, of those found in so many bytes, up to the first behind which a dummy prefix may stand
    /// and all is spaces, and the bytes before the last: how many the spaces are is not known yet.
    fn ends_to_inner_prefix<T: Id>(
        &self,
        teacher: Plain<'_, T>,
        student: Plain<'_, T>,
        found: usize,
        bytes: usize,
    ) -> (usize, usize) {
        let is_space = |byte: &&u8| **byte == b' ';
        let mut spaces = self.teacher_text[..bytes].iter().rev().take_while(is_space).count();
        let (mut kept, mut end) = ((found, bytes), (found, bytes));
        while end.0 > 1 {
            let tokens = self.last_token(end.0 - 1)..self.last_token(end.0);
            let length = teacher.length_of(tokens);
            if length > spaces {
                break;
            }
            spaces -= length;
            end = (end.0 - 1, end.1 - length);
            let place = self.ends[end.0 - 1];
            if teacher.prefix_may_follow(place.teacher()) || student.prefix_may_follow(place.student()) {
                kept = end;
            }
        }
        kept
    }

    /// Teacher's tokens before the last of so many ends.
    fn last_token(&self, found: usize) -> usize {
        found.checked_sub(1).map_or(0, |last| usize::from(self.ends[last].teacher()))
    }
}

struct Laid {
    tokens: usize,
    bytes: usize,
}

/// Lays the bytes of plain tokens one after the other, as long as they begin before the limit; says after
/// each how many tokens and bytes that makes. A token counts `STEP`: one in the half of a place that is its side's.
#[inline(always)]
#[allow(clippy::inline_always, reason = "what is done with an end is part of the innermost loop")]
fn lay<const STEP: u32>(
    text: &mut [u8; TEXT + RECORD],
    limit: usize,
    side: Plain<'_, impl Id>,
    mut ended: impl FnMut(u32, usize),
) -> Laid {
    let mut bytes = side.rest.len();
    if bytes > LIMIT {
        return Laid { tokens: 0, bytes: 0 };
    }
    text[..bytes].copy_from_slice(side.rest);
    let mut tokens = STEP;
    ended(tokens, bytes);
    let records = side.vocabulary.records();
    let mut rest = &side.tokens[1..];
    while bytes < limit {
        // Nothing is called in these loops, so that all of it stays in registers; two tokens at a time, their
        // bytes first, since the processor is faster at stores that follow each other in memory.
        while let [first, second, behind @ ..] = rest {
            let (Some(first), Some(second)) = (records.get(first.index()), records.get(second.index()))
            else {
                break;
            };
            let lengths = [first, second].map(|record| usize::from(record[RECORD - 1]));
            if (lengths[0] | lengths[1]) >= RECORD {
                break;
            }
            let middle = bytes + lengths[0];
            text[bytes & MASK..][..RECORD].copy_from_slice(first);
            text[middle & MASK..][..RECORD].copy_from_slice(second);
            bytes = middle + lengths[1];
            ended(tokens + STEP, middle);
            ended(tokens + 2 * STEP, bytes);
            tokens += 2 * STEP;
            rest = behind;
            if bytes >= limit {
                break;
            }
        }
        let Some((token, behind)) = rest.split_first().filter(|_| bytes < limit) else {
            break;
        };
        let whole = side.vocabulary.bytes(*token);
        let Some(room) = text[..LIMIT].get_mut(bytes..bytes + whole.len()).filter(|room| !room.is_empty())
        else {
            break;
        };
        room.copy_from_slice(whole);
        bytes += whole.len();
        tokens += STEP;
        ended(tokens, bytes);
        rest = behind;
    }
    Laid { tokens: (tokens / STEP) as usize, bytes }
}

/// How many bytes agree from the first on.
#[inline]
pub(crate) fn agreement(one: &[u8], other: &[u8]) -> usize {
    let length = one.len().min(other.len());
    let mut at = 0;
    while let (Some(ones), Some(others)) = (one[at..].first_chunk(), other[at..].first_chunk()) {
        let differing = u64::from_le_bytes(*ones) ^ u64::from_le_bytes(*others);
        if differing != 0 {
            return at + differing.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + (at..length).take_while(|at| one[*at] == other[*at]).count()
}
