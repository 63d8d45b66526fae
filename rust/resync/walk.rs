//! Texts that are too long for one table: window by window, from both ends.
//!
//! The best sequence of a window begins as that of the whole text does, if the window is wide enough: its first half is
//! kept, and the next window begins where that ends. Where nothing in it can be believed the way is lost, behind a
//! long insertion, say: the walk goes on at the next anchor. In text that repeats itself it may take a double for what
//! was inserted, and go on along the wrong one; the walk from the other end does not, up to the same place. So both
//! are made, and one from anchor to anchor, and of each section the best is taken.

use crate::stop::{Pace, Stop};

use super::anchors::anchors;
use super::choice::better_of;
use super::run::{Run, joined};
use super::script::{End, Section, best_runs};
use super::text::{Line, agree_from};
use super::trust;

/// Bytes of each side in a window.
const WINDOW: usize = 1024;
/// Where one byte in so many keeps its neighbour the way is not lost, however short the runs are. In a one-off look, which
/// no command here repeats, it was mostly one in four to ten between texts that have nothing to do with each other.
const DENSE: usize = 3;
/// How many windows may be looked at before anything is passed. Later ones are paid for by the bytes that are passed.
const WINDOWS_AHEAD: usize = 4;

/// A good sequence of runs in this section, in order.
pub(super) fn walk(lines: [&Line; 2], section: Section, stop: &Stop<'_>) -> Vec<Run> {
    let anchors = anchors(lines, section, stop);
    let forward = follow(lines, section, &anchors, stop);
    let backward = follow_back(lines, section, &anchors, stop);
    let from_ends = better_of(&forward, &backward, stop);
    better_of(&from_ends, &fill(lines, section, &anchors, stop), stop)
}

/// From the first byte on.
fn follow(lines: [&Line; 2], section: Section, anchors: &[Run], stop: &Stop<'_>) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut place = section.from;
    let mut anchors = anchors.iter();
    let mut credit = WINDOWS_AHEAD * WINDOW;
    while !stop.ask() {
        let start = place;
        place = push(&mut runs, Run { at: place, length: agree_from(lines, place, section.to) }, stop);
        let window =
            Section { from: place, to: [0, 1].map(|side| section.to[side].min(place[side] + WINDOW)) };
        if window.sizes().contains(&0) {
            break;
        }
        let found = if credit < WINDOW { Vec::new() } else { first_half(lines, window, section.to, stop) };
        credit = credit.saturating_sub(WINDOW);
        if found.is_empty() {
            let Some(anchor) = anchors.find(|anchor| !anchor.is_before(place)) else { break };
            place = push(&mut runs, anchor.clipped(place), stop);
        }
        for run in found {
            place = push(&mut runs, run, stop);
        }
        credit += 2 * (place[0] - start[0]).max(place[1] - start[1]);
    }
    joined(runs, stop)
}

/// Adds a run, and says where it ends.
fn push(runs: &mut Vec<Run>, run: Run, stop: &Stop<'_>) -> [usize; 2] {
    stop.push(runs, run);
    run.end()
}

/// What leads on in the first half of a window, in all of it if the section ends there; nothing where the way is lost.
fn first_half(lines: [&Line; 2], window: Section, end: [usize; 2], stop: &Stop<'_>) -> Vec<Run> {
    let is_last = window.to == end;
    let mut runs =
        best_runs(lines, window, if is_last { End::Late } else { End::Early }, stop).unwrap_or_default();
    if !is_last {
        let half = [0, 1].map(|side| window.from[side].midpoint(window.to[side]));
        runs = runs.into_iter().map(|run| run.cut(half)).filter(|run| run.length > 0).collect();
    }
    let bonds: usize = runs.iter().map(Run::bonds).sum();
    if DENSE * bonds >= WINDOW / 2 { runs } else { trust::believed(lines[0], &runs, window.from, None, stop) }
}

/// From the last byte back.
fn follow_back(lines: [&Line; 2], section: Section, anchors: &[Run], stop: &Stop<'_>) -> Vec<Run> {
    let lengths = lines.map(Line::len);
    let turned = |runs: &[Run]| runs.iter().rev().map(|run| run.reversed(lengths)).collect::<Vec<Run>>();
    let back = |place: [usize; 2]| [lengths[0] - place[0], lengths[1] - place[1]];
    let [one, other] = lines.map(|line| line.reversed(stop));
    if stop.is_set() {
        return Vec::new();
    }
    let section = Section { from: back(section.to), to: back(section.from) };
    turned(&follow([&one, &other], section, &turned(anchors), stop))
}

/// From anchor to anchor: between two the best sequence, if they are close.
fn fill(lines: [&Line; 2], section: Section, anchors: &[Run], stop: &Stop<'_>) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut pace = Pace::default();
    let mut from = section.from;
    for anchor in anchors.iter().copied().chain([Run { at: section.to, length: 0 }]) {
        let gap = Section { from, to: anchor.at };
        let [rows, columns] = gap.sizes();
        if pace.after_tokens(1, stop) {
            break;
        }
        if rows.saturating_mul(columns) <= WINDOW * WINDOW {
            let found = best_runs(lines, gap, End::Late, stop).unwrap_or_default();
            if stop.reserve(&mut runs, found.len()) {
                runs.extend(found);
            }
        }
        from = push(&mut runs, anchor, stop);
    }
    joined(runs, stop)
}
