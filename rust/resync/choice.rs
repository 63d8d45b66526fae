//! Of two sequences of runs the better one, section by section.
//!
//! Where both pass the same bytes on both sides they can be cut, and one may end as the other began. Between two such
//! places the better one is taken: the one or the other, or the one up to a place and from there on the other.

use crate::stop::{Pace, Stop};

use super::run::{Run, joined};

/// The better of two sequences, each in order and without neighbours on one diagonal.
pub(super) fn better_of(one: &[Run], other: &[Run], stop: &Stop<'_>) -> Vec<Run> {
    let mut runs = stop.room(one.len() + other.len());
    let mut pace = Pace::default();
    let mut from = [0, 0];
    let (mut ones, mut others) = (Sections::new(one), Sections::new(other));
    for shared in shared(one, other, stop).into_iter().map(Some).chain([None]) {
        if pace.after_tokens(1, stop) {
            break;
        }
        let to = shared.map_or([usize::MAX; 2], |run| run.at);
        let best = best_switch(&ones.next(from, to), &others.next(from, to));
        if !stop.reserve(&mut runs, best.len() + 1) {
            break;
        }
        runs.extend(best);
        if let Some(run) = shared {
            runs.push(run);
            from = run.end();
        }
    }
    joined(runs, stop)
}

/// The runs that both have, or the parts of them.
fn shared(mut one: &[Run], mut other: &[Run], stop: &Stop<'_>) -> Vec<Run> {
    let mut shared = stop.room(one.len().min(other.len()));
    let mut pace = Pace::default();
    while let ([first, ones @ ..], [second, others @ ..]) = (one, other) {
        if pace.after_tokens(1, stop) {
            break;
        }
        if first.diagonal() == second.diagonal() {
            let both = first.clipped(second.at).cut(second.end());
            if both.length > 0 {
                stop.push(&mut shared, both);
            }
        }
        if first.end()[0] <= second.end()[0] {
            one = ones;
        } else {
            other = others;
        }
    }
    shared
}

/// A sequence that is cut into sections, from the first to the last.
struct Sections<'a> {
    rest: &'a [Run],
}

impl<'a> Sections<'a> {
    fn new(runs: &'a [Run]) -> Self {
        Self { rest: runs }
    }

    /// What lies between these places.
    fn next(&mut self, from: [usize; 2], to: [usize; 2]) -> Vec<Run> {
        let mut inside = Vec::new();
        while let [run, rest @ ..] = self.rest {
            inside.extend(Some(run.clipped(from).cut(to)).filter(|run| run.length > 0));
            if run.end()[0] > to[0] || run.end()[1] > to[1] {
                break;
            }
            self.rest = rest;
        }
        inside
    }
}

/// The best of the one up to a place and the other from there on.
fn best_switch(one: &[Run], other: &[Run]) -> Vec<Run> {
    let (there, back) = (switch(one, other), switch(other, one));
    if bonds(&there) >= bonds(&back) { there } else { back }
}

/// The best of the first so many of the one, and of the other what lies behind.
fn switch(one: &[Run], other: &[Run]) -> Vec<Run> {
    let mut left = bonds(other);
    let mut behind = other.iter().copied().peekable();
    let mut kept = 0;
    let mut best = (left, 0);
    for (index, run) in one.iter().enumerate() {
        kept += run.bonds();
        let end = run.end();
        while let Some(passed) = behind.next_if(|run| run.is_before(end)) {
            left -= passed.bonds();
        }
        let lost = behind.peek().map_or(0, |run| run.bonds() - run.clipped(end).bonds());
        if kept + left - lost > best.0 {
            best = (kept + left - lost, index + 1);
        }
    }
    let (first, _) = one.split_at(best.1);
    let end = first.last().map_or([0, 0], Run::end);
    let rest = other.iter().map(|run| run.clipped(end)).filter(|run| run.length > 0);
    first.iter().copied().chain(rest).collect()
}

fn bonds(runs: &[Run]) -> usize {
    runs.iter().map(Run::bonds).sum()
}
