//! Which runs are believed: those that agree on more than it takes to say where they lie.
//!
//! In bits, as for a code: a byte that agrees saves [`BITS_A_BYTE`], and to go on with another run costs [`JUMP`] and
//! the logarithms of how far it is on either side. A short run close by is believed so, far away a long one only, and
//! many short ones that follow each other closely. Of the runs those are kept that save most together.

use super::run::{Run, signed};
use super::text::Line;

/// What a byte of natural text says, given what stands before it.
const BITS_A_BYTE: i64 = 2;
/// What it costs that there is a jump.
const JUMP: i64 = 2;
/// Among how many runs the one before is looked for, besides the best one so far.
const LOOK_BACK: usize = 16;

/// Of these runs, in order, those that save most together; what comes before the first is known to agree up to `start`.
pub(super) fn believed(line: &Line, runs: &[Run], start: [usize; 2], end: Option<[usize; 2]>) -> Vec<Run> {
    let mut saved: Vec<i64> = Vec::with_capacity(runs.len());
    let mut before: Vec<Option<usize>> = Vec::with_capacity(runs.len());
    let mut leader: Option<usize> = None;
    let best_before = |saved: &[i64], leader: Option<usize>, index: usize, at: [usize; 2]| {
        let mut best = (-cost(start, at), None);
        for earlier in (index.saturating_sub(LOOK_BACK)..index).chain(leader) {
            let all = saved[earlier] - cost(runs[earlier].end(), at);
            if all > best.0 {
                best = (all, Some(earlier));
            }
        }
        best
    };
    for (index, run) in runs.iter().enumerate() {
        let (all, from) = best_before(&saved, leader, index, run.at);
        let all = all + BITS_A_BYTE * signed(without_repeated_spaces(line, run));
        if leader.is_none_or(|leader| all > saved[leader]) {
            leader = Some(index);
        }
        saved.push(all);
        before.push(from);
    }
    let mut at = match end {
        Some(end) => best_before(&saved, leader, runs.len(), end).1,
        None => leader.filter(|leader| saved[*leader] > 0),
    };
    let mut kept = Vec::new();
    while let Some(index) = at {
        kept.push(runs[index]);
        at = before[index];
    }
    kept.reverse();
    kept
}

/// What it takes to say that the next run is there, from the end of the last one.
fn cost(end: [usize; 2], at: [usize; 2]) -> i64 {
    let [one, other] = [0, 1].map(|side| i64::from((at[side] - end[side] + 1).ilog2()));
    JUMP + one + other
}

/// How many bytes a run has, of spaces that follow each other only the first: in source code they agree by chance.
fn without_repeated_spaces(line: &Line, run: &Run) -> usize {
    let bytes = &line.bytes[run.at[0]..run.end()[0]];
    let repeated = bytes.windows(2).filter(|both| **both == [b' ', b' ']).count();
    bytes.len() - repeated
}
