//! Pieces of text that stand once on either side: where to go on when the way is lost.
//!
//! Of the pieces that both sides have just once, the longest sequence is kept that rises on both sides (patience
//! sorting, as in Cohen's diff): a few that stand elsewhere do not outvote the many that stand where they should.

use std::iter;
use std::ops::Range;

use crate::stop::{Pace, Stop};

use super::run::Run;
use super::script::Section;
use super::text::{Line, agree_before, agree_from, offset};

/// Bytes of a piece.
const PIECE: usize = 16;
/// One piece in so many is looked at, chosen by what it says.
const SAMPLE: u64 = 4;
/// Into so many parts pieces are sorted first: no part takes long.
const PARTS: usize = 256;

/// Common runs over pieces that stand once, in order.
pub(super) fn anchors(lines: [&Line; 2], section: Section, stop: &Stop<'_>) -> Vec<Run> {
    let mut end = section.from;
    let mut anchors: Vec<Run> = Vec::new();
    for place in rising(&common_places(lines, section, stop), stop) {
        if place[0] >= end[0] && place[1] >= end[1] {
            let back = agree_before(lines, place, end);
            let length = back + agree_from(lines, place, section.to);
            // Two pieces of one hash need not be the same.
            if length >= PIECE {
                let run = Run { at: place.map(|at| at - back), length };
                end = run.end();
                stop.push(&mut anchors, run);
            }
        }
    }
    anchors
}

/// A piece by its hash, and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    hash: u64,
    at: u32,
}

/// Where the pieces stand that both sides have once, in the order of the first side.
fn common_places(lines: [&Line; 2], section: Section, stop: &Stop<'_>) -> Vec<[usize; 2]> {
    let [mut ones, mut others] =
        [0, 1].map(|side| pieces(lines[side], section.from[side]..section.to[side], stop));
    let mut places: Vec<Vec<[usize; 2]>> = vec![Vec::new(); PARTS + 1];
    let part = section.sizes()[0].div_ceil(PARTS).max(1);
    for (ones, others) in ones.iter_mut().zip(&mut others) {
        if stop.ask() {
            return Vec::new();
        }
        let mut singles = single(others).peekable();
        for one in single(ones) {
            while singles.next_if(|other| other.hash < one.hash).is_some() {}
            if let Some(other) = singles.next_if(|other| other.hash == one.hash) {
                let place = [one, other].map(|piece| piece.at as usize);
                stop.push(&mut places[(place[0] - section.from[0]) / part], place);
            }
        }
    }
    in_order(places, stop)
}

/// The places of all parts, which follow each other.
fn in_order(parts: Vec<Vec<[usize; 2]>>, stop: &Stop<'_>) -> Vec<[usize; 2]> {
    let mut places = stop.room(parts.iter().map(Vec::len).sum());
    for mut part in parts {
        if stop.ask() {
            return Vec::new();
        }
        part.sort_unstable();
        places.append(&mut part);
    }
    places
}

/// The pieces of the sample, in parts by their hashes.
fn pieces(line: &Line, range: Range<usize>, stop: &Stop<'_>) -> Vec<Vec<Piece>> {
    let mut parts: Vec<Vec<Piece>> = vec![Vec::new(); PARTS];
    let mut pace = Pace::default();
    let mut start = range.start;
    for end in line.unknown_in(range.clone()).chain([range.end]) {
        for (index, bytes) in line.bytes[start.min(end)..end].windows(PIECE).enumerate() {
            let hash = hash_of(bytes);
            if hash.is_multiple_of(SAMPLE) {
                let piece = Piece { hash, at: offset(start + index) };
                stop.push(&mut parts[(hash / SAMPLE) as usize % PARTS], piece);
            }
            if pace.after(1, stop) {
                return parts;
            }
        }
        start = end + 1;
    }
    parts
}

/// Those that stand there once, in the order of their hashes.
fn single(pieces: &mut [Piece]) -> impl Iterator<Item = Piece> {
    pieces.sort_unstable();
    let same = pieces.chunk_by(|one, next| one.hash == next.hash);
    same.filter_map(|same| if let [one] = same { Some(*one) } else { None })
}

fn hash_of(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_right(29);
    words.fold(0, mix).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 16
}

/// The longest sequence of these places that rises on the second side, too.
fn rising(places: &[[usize; 2]], stop: &Stop<'_>) -> Vec<[usize; 2]> {
    // Of the sequences of each length the one that ends lowest, and for each place the one before it.
    let mut lowest: Vec<usize> = stop.room(places.len());
    let mut before: Vec<Option<usize>> = stop.room(places.len());
    let mut sequence: Vec<[usize; 2]> = stop.room(places.len());
    let mut pace = Pace::default();
    for (index, place) in places.iter().enumerate() {
        if stop.is_set() || pace.after_tokens(1, stop) {
            return sequence;
        }
        let length = lowest.partition_point(|last| places[*last][1] < place[1]);
        before.push(length.checked_sub(1).map(|shorter| lowest[shorter]));
        if length == lowest.len() {
            lowest.push(index);
        } else {
            lowest[length] = index;
        }
    }
    let last = lowest.last().copied();
    sequence.extend(iter::successors(last, |index| before[*index]).map(|index| places[index]));
    sequence.reverse();
    sequence
}
