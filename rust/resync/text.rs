//! The texts in which is searched: bytes, which of them are unknown, and where tokens begin.

use std::ops::Range;

use crate::blocks::agreement;
use crate::found::Counted;
use crate::stop::{Pace, Stop};
use crate::vocabulary::{Id, Kind, MAX_TOKEN_BYTES, NO_RECORD, RECORD, UNKNOWN_RECORD, Vocabulary};

use super::run::agreement_back;

/// The bytes of a text; a token of unknown bytes is one byte that equals nothing.
///
/// Offsets fit 32 bits: of a text of more than 4 GB the tokens behind are left out, and nothing is found there.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    pub(super) bytes: Vec<u8>,
    /// Where the unknown bytes stand.
    pub(super) unknown: Vec<u32>,
}

/// What is written for unknown bytes; so is a byte that is known to be this one.
const UNKNOWN: u8 = 0xFF;
/// Tokens for which room is made at once.
const AT_ONCE: usize = 256;
/// Bytes of a token for which memory is reserved.
const USUAL_BYTES: usize = 5;
/// Bytes of a text behind which no more tokens are laid.
const MOST_BYTES: usize = u32::MAX as usize - AT_ONCE * MAX_TOKEN_BYTES;

impl Line {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether this byte is known: most are told by what they are.
    pub(super) fn is_known(&self, at: usize) -> bool {
        self.bytes[at] != UNKNOWN || self.unknown_in(at..at + 1).next().is_none()
    }

    /// The unknown bytes in this range.
    pub(super) fn unknown_in(&self, range: Range<usize>) -> impl Iterator<Item = usize> + Clone {
        let first = self.unknown.partition_point(|at| (*at as usize) < range.start);
        self.unknown[first..].iter().map(|at| *at as usize).take_while(move |at| *at < range.end)
    }

    /// From `start` on what is known, up to `end`.
    fn known_from(&self, start: usize, end: usize) -> &[u8] {
        let stop = self.unknown_in(start..end).next().unwrap_or(end);
        &self.bytes[start..stop]
    }

    /// Back from `end` what is known, down to `start`.
    fn known_before(&self, start: usize, end: usize) -> &[u8] {
        let behind = self.unknown.partition_point(|at| (*at as usize) < end);
        let stop = behind.checked_sub(1).map_or(start, |last| start.max(self.unknown[last] as usize + 1));
        &self.bytes[stop..end]
    }

    /// The same from the last byte to the first.
    pub(super) fn reversed(&self, stop: &Stop<'_>) -> Self {
        let mut reversed =
            Self { bytes: stop.room(self.bytes.len()), unknown: stop.room(self.unknown.len()) };
        if !stop.is_set() {
            reversed.bytes.extend(self.bytes.iter().rev());
            reversed.unknown.extend(self.unknown.iter().rev().map(|at| offset(self.len() - 1) - at));
        }
        reversed
    }
}

/// How far both agree from here, at most to `end`.
pub(super) fn agree_from(lines: [&Line; 2], at: [usize; 2], end: [usize; 2]) -> usize {
    agreement(lines[0].known_from(at[0], end[0]), lines[1].known_from(at[1], end[1]))
}

/// How far both agree before here, at most back to `start`.
pub(super) fn agree_before(lines: [&Line; 2], at: [usize; 2], start: [usize; 2]) -> usize {
    agreement_back(lines[0].known_before(start[0], at[0]), lines[1].known_before(start[1], at[1]))
}

/// The text of tokens.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text {
    pub(super) line: Line,
    /// Where each token begins, and where the last one ends.
    pub(super) starts: Vec<u32>,
}

impl Text {
    /// The text of these tokens.
    #[must_use]
    pub fn new(vocabulary: &Vocabulary, tokens: &[impl Id], stop: &Stop<'_>) -> Self {
        let bytes = stop.room(USUAL_BYTES * tokens.len() + AT_ONCE * RECORD);
        let mut text =
            Self { line: Line { bytes, unknown: Vec::new() }, starts: stop.room(tokens.len() + 1) };
        text.starts.push(0);
        let mut pace = Pace::default();
        for tokens in tokens.chunks(AT_ONCE) {
            let before = text.line.len();
            if before <= MOST_BYTES && !stop.is_set() {
                text.push(vocabulary, tokens, stop);
            }
            pace.after(text.line.len() - before, stop);
        }
        text
    }

    /// Adds a few tokens.
    fn push(&mut self, vocabulary: &Vocabulary, tokens: &[impl Id], stop: &Stop<'_>) {
        let length: usize = tokens.iter().map(|token| vocabulary.bytes(*token).len().max(1)).sum();
        if !(stop.reserve(&mut self.line.bytes, length) && stop.reserve(&mut self.line.unknown, tokens.len()))
        {
            return;
        }
        let mut laid = [0; AT_ONCE * RECORD];
        let mut end = 0;
        let Self { line: Line { bytes, unknown }, starts } = self;
        starts.extend(tokens.iter().map(|token| {
            let record = vocabulary.records().get(token.index()).unwrap_or(&UNKNOWN_RECORD);
            let length = record[RECORD - 1];
            if length == NO_RECORD {
                bytes.extend_from_slice(&laid[..end]);
                end = 0;
                bytes.extend_from_slice(vocabulary.bytes(*token));
                if vocabulary.kind(*token) == Kind::Opaque {
                    unknown.push(offset(bytes.len()));
                    bytes.push(UNKNOWN);
                }
            } else {
                laid[end..][..RECORD].copy_from_slice(record);
                end += usize::from(length);
            }
            offset(bytes.len() + end)
        }));
        bytes.extend_from_slice(&laid[..end]);
    }

    /// How many bytes these tokens have; nothing if some were left out.
    #[must_use]
    pub fn length_of(&self, tokens: Range<usize>) -> Option<usize> {
        Some((self.starts.get(tokens.end)? - self.starts.get(tokens.start)?) as usize)
    }

    /// Of these tokens how many have bytes, how many bytes, and how many are unknown; nothing if some were left out.
    #[must_use]
    pub fn count(&self, tokens: Range<usize>) -> Option<Counted> {
        let starts = self.starts.get(tokens.start..=tokens.end)?;
        let [first, last] = [starts[0], starts[starts.len() - 1]];
        let before = |end: u32| self.line.unknown.partition_point(|at| *at < end);
        let unknown = before(last) - before(first);
        let wide: usize = starts.windows(2).map(|both| usize::from(both[0] < both[1])).sum();
        let number = |count: usize| i64::try_from(count).expect("they are 32 bits");
        let bytes = number((last - first) as usize - unknown);
        Some(Counted { tokens: number(wide - unknown), bytes, opaque: number(unknown) })
    }

    /// Where this token begins; the end of the text if it was left out.
    #[must_use]
    pub fn start_of(&self, token: usize) -> usize {
        self.starts[token.min(self.starts.len() - 1)] as usize
    }

    /// The first token that begins here or behind.
    pub(super) fn first_at(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| (*start as usize) < offset)
    }

    /// Whether a token begins here, which is the first that begins here or behind.
    pub(super) fn begins_at(&self, token: usize, offset: usize) -> bool {
        self.starts.get(token).is_some_and(|start| *start as usize == offset)
    }
}

pub(super) fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("MOST_BYTES sees to it")
}
