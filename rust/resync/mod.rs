//! Where two texts differ: the next place from which they agree again.
//!
//! What corresponds in two texts is worked out once, at their first difference, and then passed from run to run.
//! `dskd.reference` has the same without limits, and docs/alignment.md all the numbers. In the order in which it goes:
//!
//! * `text`: tokens become bytes again, of which some are unknown
//! * `run`: a stretch of bytes that is the same on both sides, of which all that follows speaks
//! * this file: what both texts begin and end with is set apart
//! * `script`: between, the sequence of runs in which most neighbours stay neighbours, if it fits a table
//! * `singles`: between two runs that are close, bytes that agree alone
//! * `trust`: of all these runs those that save more than it takes to say where they lie
//! * this file: what is left grows as far as the bytes agree
//! * `places`: where in a run alignment can resume, by tokens
//!
//! In place of `script`, where the texts are too long for one table:
//!
//! * `walk`: window by window, from both ends, and from anchor to anchor
//! * `anchors`: pieces that stand once on either side, where to go on when the way is lost
//! * `choice`: of two such walks the better one, section by section
//!
//! What can take long asks [`Stop`] now and then; what is found when it says so is good for nothing.

mod anchors;
mod choice;
mod places;
mod run;
mod script;
mod singles;
mod text;
mod trust;
mod walk;

pub use text::Text;

use crate::side::{Side, Sides};
use crate::stop::{Pace, Stop};
use run::Run;
use script::{End, Section};
use text::{Line, agree_before, agree_from};

/// What may be looked at in vain behind all differences, for each byte and each token.
const VAIN_A_BYTE: usize = 32;

/// The search in one segment.
#[derive(Debug)]
pub struct Search {
    sides: [Text; 2],
    /// Whether the teacher's text is the second of the sides.
    swapped: bool,
    /// The runs ahead, the nearest last.
    runs: Vec<Run>,
    /// How much more may be looked at in vain.
    patience: usize,
}

impl Search {
    /// A search in these texts, which begin with a difference.
    #[must_use]
    pub fn new(texts: Sides<Text>, stop: &Stop<'_>) -> Self {
        let swapped = texts.teacher > texts.student;
        let Sides { teacher, student } = texts;
        let sides = if swapped { [student, teacher] } else { [teacher, student] };
        let looked_at: usize = sides.iter().map(|side| side.line.len() + side.starts.len()).sum();
        let lines = [&sides[0].line, &sides[1].line];
        let mut runs = if lines[0] == lines[1] { known(lines[0], stop) } else { correspondence(lines, stop) };
        runs.reverse();
        Self { sides, swapped, runs, patience: VAIN_A_BYTE * looked_at }
    }

    /// The text of this side.
    #[must_use]
    pub fn text(&self, side: Side) -> &Text {
        &self.sides[usize::from((side == Side::Student) != self.swapped)]
    }

    /// Both texts.
    #[must_use]
    pub fn texts(&self) -> Sides<&Text> {
        Sides { teacher: self.text(Side::Teacher), student: self.text(Side::Student) }
    }

    /// Says that so much was looked at in vain; where it was too much, no place is found any more.
    pub fn spend(&mut self, looked_at: usize) {
        self.patience = self.patience.saturating_sub(looked_at);
    }

    /// The next place behind this one, in offsets, where alignment can resume: a token of each side.
    pub fn next(&mut self, place: Sides<usize>) -> Option<Sides<usize>> {
        if self.patience == 0 {
            return None;
        }
        let place = self.by_content(place);
        while let Some(run) = self.runs.last() {
            let resumes =
                if run.is_before(place) { None } else { places::resume_in(&self.sides, *run, place) };
            if let Some([tokens, behind]) = resumes {
                // Where there is no chunk at this place, all this is looked at again.
                self.spend(behind[0] - tokens[0] + behind[1] - tokens[1]);
                return Some(self.named(tokens));
            }
            self.runs.pop();
        }
        None
    }

    /// From the order of names to that of content.
    fn by_content(&self, Sides { teacher, student }: Sides<usize>) -> [usize; 2] {
        if self.swapped { [student, teacher] } else { [teacher, student] }
    }

    /// And back.
    fn named(&self, [one, other]: [usize; 2]) -> Sides<usize> {
        if self.swapped {
            Sides { teacher: other, student: one }
        } else {
            Sides { teacher: one, student: other }
        }
    }
}

/// All known bytes of two texts that are the same: they agree wherever they are known.
fn known(line: &Line, stop: &Stop<'_>) -> Vec<Run> {
    let mut runs = stop.room(line.unknown.len() + 1);
    let mut start = 0;
    for end in line.unknown_in(0..line.len()).chain([line.len()]) {
        if end > start {
            stop.push(&mut runs, Run { at: [start, start], length: end - start });
        }
        start = end + 1;
    }
    runs
}

/// What corresponds in two texts, in order.
fn correspondence(lines: [&Line; 2], stop: &Stop<'_>) -> Vec<Run> {
    let ends = lines.map(Line::len);
    let beginning = Run { at: [0, 0], length: agree_from(lines, [0, 0], ends) };
    let length = agree_before(lines, ends, beginning.end());
    let ending = Run { at: ends.map(|end| end - length), length };
    let middle = Section { from: beginning.end(), to: ending.at };
    let runs =
        script::best_runs(lines, middle, End::Late, stop).unwrap_or_else(|| walk::walk(lines, middle, stop));
    let runs = singles::with_singles(lines, middle, &runs, stop);
    let mut runs = trust::believed(lines[0], &runs, beginning.end(), Some(ending.at), stop);
    if stop.reserve(&mut runs, 2) {
        runs.insert(0, beginning);
        runs.push(ending);
    }
    runs.retain(|run| run.length > 0);
    grow(lines, &mut runs, ends, stop);
    runs
}

/// Lets each run begin and end where the texts no longer agree: what was not believed may have been in between.
fn grow(lines: [&Line; 2], runs: &mut [Run], ends: [usize; 2], stop: &Stop<'_>) {
    let mut pace = Pace::default();
    let mut end = [0, 0];
    for index in 0..runs.len() {
        if pace.after_tokens(1, stop) {
            break;
        }
        let behind = runs.get(index + 1).map_or(ends, |next| next.at);
        let run = &mut runs[index];
        let back = agree_before(lines, run.at, end);
        *run = Run { at: run.at.map(|at| at - back), length: run.length + back };
        run.length += agree_from(lines, run.end(), behind);
        end = run.end();
    }
}
