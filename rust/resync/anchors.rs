//! Pieces of text that stand once on either side: where to go on when the way is lost.
//!
//! Of the pieces that both sides have just once, the longest sequence is kept that rises on both sides (patience
//! sorting, as in Cohen's diff): a few that stand elsewhere do not outvote the many that stand where they should.

use std::ops::Range;

use crate::stop::Stop;

use super::run::Run;
use super::script::Section;
use super::text::{Line, agree_before, agree_from};

/// Bytes of a piece.
const PIECE: usize = 16;
/// One piece in so many is looked at, chosen by what it says.
const SAMPLE: u64 = 4;
/// How often a long loop asks whether to stop.
const STRIDE: usize = 1 << 16;

/// Common runs over pieces that stand once, in order.
pub(super) fn anchors(lines: [&Line; 2], section: Section, stop: &Stop) -> Vec<Run> {
    let pieces = [0, 1].map(|side| single_pieces(lines[side], section.from[side]..section.to[side], stop));
    let mut end = section.from;
    let mut anchors: Vec<Run> = Vec::new();
    for place in rising(&common(&pieces)) {
        if place[0] < end[0] || place[1] < end[1] {
            continue;
        }
        let back = agree_before(lines, place, end);
        let length = back + agree_from(lines, place, section.to);
        if length < PIECE {
            continue;
        }
        let run = Run { at: place.map(|at| at - back), length };
        end = run.end();
        anchors.push(run);
    }
    anchors
}

/// A piece by its hash, and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    hash: u64,
    at: usize,
}

/// The pieces of the sample that stand here once, in the order of their hashes.
fn single_pieces(line: &Line, range: Range<usize>, stop: &Stop) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut start = range.start;
    for end in line.unknown_in(range.clone()).chain([range.end]) {
        for (index, bytes) in line.bytes[start.min(end)..end].windows(PIECE).enumerate() {
            if index.is_multiple_of(STRIDE) && stop.is_set() {
                return Vec::new();
            }
            let hash = hash_of(bytes);
            if hash.is_multiple_of(SAMPLE) {
                pieces.push(Piece { hash, at: start + index });
            }
        }
        start = end + 1;
    }
    pieces.sort_unstable();
    pieces.chunk_by(|one, next| one.hash == next.hash).filter_map(|same| if let [one] = same { Some(*one) } else { None }).collect()
}

fn hash_of(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let hash = words.fold(0_u64, |hash, word| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_right(29));
    hash.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 16
}

/// Where the pieces that both have stand, in the order of the first side.
fn common([one, other]: &[Vec<Piece>; 2]) -> Vec<[usize; 2]> {
    let mut others = other.iter().peekable();
    let mut places = Vec::new();
    for piece in one {
        while others.next_if(|other| other.hash < piece.hash).is_some() {}
        if let Some(other) = others.next_if(|other| other.hash == piece.hash) {
            places.push([piece.at, other.at]);
        }
    }
    places.sort_unstable();
    places
}

/// The longest sequence of these places that rises on the second side, too.
fn rising(places: &[[usize; 2]]) -> Vec<[usize; 2]> {
    // Of the sequences of each length the one that ends lowest, and for each place the one before it.
    let mut lowest: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(places.len());
    for (index, place) in places.iter().enumerate() {
        let length = lowest.partition_point(|last| places[*last][1] < place[1]);
        before.push(length.checked_sub(1).map(|shorter| lowest[shorter]));
        if length == lowest.len() { lowest.push(index) } else { lowest[length] = index }
    }
    let mut sequence: Vec<[usize; 2]> =
        std::iter::successors(lowest.last().copied(), |index| before[*index]).map(|index| places[index]).collect();
    sequence.reverse();
    sequence
}
