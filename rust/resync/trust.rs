//! Which runs are believed: those that say more than it takes to say where they lie.
//!
//! As in a code: a byte that agrees need not be said and saves [`BYTE`], and to say where the next run is costs [`JUMP`]
//! and, for each doubling of what is skipped on either side, [`DOUBLING`]. So a short run is believed close by, a long one
//! at any distance, and many short ones that follow each other closely. Of the runs those are kept that save most
//! together.

use crate::stop::{Pace, Stop};

use super::run::{Run, signed};
use super::text::Line;

/// With a doubling as one bit, a byte of text says a bit and a third: between what it says to a good model and to a simple
/// one.
const BYTE: i64 = 4;
const JUMP: i64 = 2;
const DOUBLING: i64 = 3;
/// No jump costs more, since offsets have 32 bits.
const MOST: i64 = JUMP + 64 * DOUBLING;

/// Where a sequence of believed runs can go on, and what it has saved.
struct Halt {
    end: [usize; 2],
    saved: i64,
    /// Its last run; none where nothing is believed yet.
    last: Option<usize>,
}

/// Of these runs, in order, those that save most together, from a place before them to one behind them; where none
/// is given, to wherever most is saved.
pub(super) fn believed(
    line: &Line,
    runs: &[Run],
    from: [usize; 2],
    to: Option<[usize; 2]>,
    stop: &Stop<'_>,
) -> Vec<Run> {
    let mut before: Vec<Option<usize>> = stop.room(runs.len());
    let mut pace = Pace::default();
    let mut halts = vec![Halt { end: from, saved: 0, last: None }];
    for (index, run) in runs.iter().enumerate() {
        if stop.is_set() || pace.after(run.length, stop) {
            return Vec::new();
        }
        let (saved, last) = best_before(&halts, run.at);
        before.push(last);
        let saved = saved + BYTE * signed(without_repeated_spaces(line, run));
        add(&mut halts, Halt { end: run.end(), saved, last: Some(index) });
    }
    let last = to.map_or(halts[0].last, |to| best_before(&halts, to).1);
    let mut kept: Vec<Run> = stop.room(runs.len());
    if !stop.is_set() {
        kept.extend(std::iter::successors(last, |index| before[*index]).map(|index| runs[index]));
        kept.reverse();
    }
    kept
}

/// What is saved at most when this place is reached, and the last run before it; of several the latest.
fn best_before(halts: &[Halt], place: [usize; 2]) -> (i64, Option<usize>) {
    let saved = halts.iter().map(|halt| (halt.saved - cost(halt.end, place), halt.last));
    saved.max_by_key(|(saved, _)| *saved).expect("there is one where nothing is believed yet")
}

/// Keeps those from which a best sequence can go on: not one that has saved no more than a later one, and none that has
/// saved so much less than another that the longest jump from there is better. So they are few.
fn add(halts: &mut Vec<Halt>, halt: Halt) {
    if halts[0].saved - halt.saved < MOST {
        while halts.pop_if(|earlier| earlier.saved <= halt.saved).is_some() {}
        halts.push(halt);
    }
}

/// What it takes to say that the next run is there, from the end of the last one.
fn cost(end: [usize; 2], at: [usize; 2]) -> i64 {
    let [one, other] = [0, 1].map(|side| i64::from((at[side] - end[side] + 1).ilog2()));
    JUMP + DOUBLING * (one + other)
}

/// How many bytes a run has, of spaces that follow each other only the first: in source code they agree by chance.
fn without_repeated_spaces(line: &Line, run: &Run) -> usize {
    let bytes = &line.bytes[run.at[0]..run.end()[0]];
    bytes.len() - bytes.windows(2).filter(|both| **both == [b' ', b' ']).count()
}
