//! Between two runs that are close to each other: bytes that agree and have no neighbour that does.
//!
//! The best sequence of runs gains nothing by them. Where little lies between two runs they are the longest common
//! subsequence of it, which is found cell by cell.

use crate::stop::{Pace, Stop};

use super::run::Run;
use super::script::Section;
use super::text::{Line, agree_before};

/// Most bytes between two runs, on either side.
const CLOSE: usize = 16;

/// These runs, which lie in this section, and those between them.
pub(super) fn with_singles(lines: [&Line; 2], section: Section, runs: &[Run], stop: &Stop<'_>) -> Vec<Run> {
    let mut all: Vec<Run> = stop.room(runs.len());
    let mut scores = Scores::default();
    let mut pace = Pace::default();
    let mut from = section.from;
    for run in runs.iter().copied().chain([Run { at: section.to, length: 0 }]) {
        let gap = Section { from, to: run.at };
        if gap.sizes().iter().all(|size| (1..=CLOSE).contains(size)) {
            if pace.after(CLOSE * CLOSE, stop) {
                break;
            }
            scores.fill(lines, gap);
            scores.push_runs(lines, gap, &mut all, stop);
        }
        if run.length > 0 {
            stop.push(&mut all, run);
        }
        from = run.end();
    }
    all
}

/// How many bytes the longest common subsequence of so many first bytes of both sides has.
#[derive(Default)]
struct Scores([[u8; CLOSE + 1]; CLOSE + 1]);

impl Scores {
    fn fill(&mut self, lines: [&Line; 2], gap: Section) {
        let [rows, columns] = gap.sizes();
        for row in 1..=rows {
            for column in 1..=columns {
                self.0[row][column] = if agree(lines, gap, [row, column]) {
                    self.0[row - 1][column - 1] + 1
                } else {
                    self.0[row - 1][column].max(self.0[row][column - 1])
                };
            }
        }
    }

    /// Adds its runs, of several sequences that are as long those of the one that ends latest.
    fn push_runs(&self, lines: [&Line; 2], gap: Section, runs: &mut Vec<Run>, stop: &Stop<'_>) {
        let first = runs.len();
        let [mut row, mut column] = gap.sizes();
        while row > 0 && column > 0 {
            if agree(lines, gap, [row, column]) {
                let end = [gap.from[0] + row, gap.from[1] + column];
                let length = agree_before(lines, end, gap.from);
                stop.push(runs, Run { at: end.map(|at| at - length), length });
                (row, column) = (row - length, column - length);
            } else if self.0[row][column - 1] == self.0[row][column] {
                column -= 1;
            } else {
                row -= 1;
            }
        }
        runs[first..].reverse();
    }
}

/// Whether the last of so many first bytes of both sides agree.
fn agree(lines: [&Line; 2], gap: Section, [row, column]: [usize; 2]) -> bool {
    let at = [gap.from[0] + row - 1, gap.from[1] + column - 1];
    lines[0].bytes[at[0]] == lines[1].bytes[at[1]] && lines[0].is_known(at[0]) && lines[1].is_known(at[1])
}
