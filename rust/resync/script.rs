//! The best sequence of runs between two places: the one in which most neighbours stay neighbours.
//!
//! Of two bytes that follow each other on one side and agree with two that follow each other on the other, a *bond*
//! is kept: a run of `n` bytes keeps `n - 1`. So many scattered bytes that agree by chance are worth nothing, and one
//! long run more than two short ones. With `score(i, j)` for the first `i` bytes of one side and the first `j` of the
//! other,
//!
//! ```text
//! ends(i, j)  = max(ends(i-1, j-1) + 1, score(i-1, j-1))           where the bytes agree
//! score(i, j) = max(score(i-1, j), score(i, j-1), ends(i, j))      and 0 at the edges
//! ```
//!
//! From cell to cell the score rises by 0 or 1, and `ends` matters only where it is the score. So 64 cells are two
//! words, and are made at once, as in the bit-parallel longest common subsequence (Hyyrö 2004).
//!
//! Most cells are far from the best sequence. A first pass looks near the diagonals of both corners only; its score
//! bounds how far away the best sequence can lead (Ukkonen 1985), and another pass looks there. Of the cells only
//! every [`BLOCK`]th row is kept; the rows between are made again on the way back.

use std::ops::Range;

use crate::stop::{Pace, Stop};

use super::run::Run;
use super::text::{Line, agree_before};

/// Words of 64 cells that one table may have: 8192 by 8192 bytes, a few milliseconds. Its masks may have an eighth as
/// many, one megabyte.
const MOST_WORDS: usize = 1 << 20;
/// How far from the diagonals of the corners the first pass looks, in bytes.
const FIRST_REACH: usize = 128;
/// Rows from one that is kept to the next.
const BLOCK: usize = 64;
/// Rows that are made together: while one waits for a carry another goes on.
const ROWS: usize = 2;

/// A stretch of both texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) from: [usize; 2],
    pub(super) to: [usize; 2],
}

impl Section {
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.to[0] - self.from[0], self.to[1] - self.from[1]]
    }
}

/// The best sequence of runs in this section, in order; nothing if the table is too large.
///
/// Of several that are as good, the one whose last run ends latest, or earliest, on the second side, then on the first;
/// and of those the one whose run before it ends latest, and so on.
pub(super) fn best_runs(lines: [&Line; 2], section: Section, end: End, stop: &Stop<'_>) -> Option<Vec<Run>> {
    let [rows, columns] = section.sizes();
    if rows == 0 || columns == 0 {
        return Some(Vec::new());
    }
    let masks = Masks::new(lines[1], section.from[1]..section.to[1], stop)?;
    let mut reach = FIRST_REACH;
    loop {
        let table = Table::new(lines, section, &masks, reach, stop)?;
        let needed = rows.min(columns) - table.bonds;
        if needed <= reach || table.width == masks.words {
            return Some(table.runs(end, stop));
        }
        reach = needed.min(4 * reach);
    }
}

/// Where the last run is to end, if there is a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The texts end with the section, or go on from there in step.
    Late,
    /// The texts go on, who knows how.
    Early,
}

/// For each byte value the columns at which it stands, a bit each.
struct Masks {
    words: usize,
    bits: Vec<u64>,
    nowhere: Vec<u64>,
}

impl Masks {
    /// Nothing if they are too many.
    fn new(line: &Line, range: Range<usize>, stop: &Stop<'_>) -> Option<Self> {
        let words = range.len().div_ceil(64);
        if 8 * 256 * words > MOST_WORDS {
            return None;
        }
        let mut bits = filled(0_u64, 256 * words, stop)?;
        for (column, byte) in line.bytes[range.clone()].iter().enumerate() {
            bits[usize::from(*byte) * words + column / 64] |= 1 << (column % 64);
        }
        for at in line.unknown_in(range.clone()) {
            let column = at - range.start;
            bits[usize::from(line.bytes[at]) * words + column / 64] &= !(1 << (column % 64));
        }
        Some(Self { words, bits, nowhere: filled(0, words, stop)? })
    }

    fn of(&self, byte: u8) -> &[u64] {
        &self.bits[usize::from(byte) * self.words..][..self.words]
    }
}

/// So many of them; nothing where memory does not suffice.
fn filled<T: Copy>(item: T, count: usize, stop: &Stop<'_>) -> Option<Vec<T>> {
    let mut items = stop.room(count);
    let has_room = !stop.is_set();
    has_room.then(|| items.resize(count, item))?;
    Some(items)
}

/// 64 cells of a row.
#[derive(Clone, Copy)]
struct Cells {
    /// Where the score is that of the cell before.
    level: u64,
    /// Where a run ends with which the score is reached.
    ends: u64,
}

/// Above the first row there is no run, and no score.
const EDGE: Cells = Cells { level: u64::MAX, ends: 0 };

/// What of each row lies near the diagonals that are looked at.
struct Table<'a> {
    lines: [&'a Line; 2],
    section: Section,
    masks: &'a Masks,
    reach: usize,
    /// How many words are made of each row.
    width: usize,
    /// The row above each block.
    above: Vec<Cells>,
    /// The score of the best sequence.
    bonds: usize,
    /// The row in which the score of the last column became that.
    last_rise: usize,
}

impl<'a> Table<'a> {
    /// Nothing if it is too large.
    fn new(
        lines: [&'a Line; 2],
        section: Section,
        masks: &'a Masks,
        reach: usize,
        stop: &Stop<'_>,
    ) -> Option<Self> {
        let [rows, columns] = section.sizes();
        let width = ((rows.abs_diff(columns) + 2 * reach) / 64 + 2).min(masks.words);
        if rows.checked_mul(width)? > MOST_WORDS {
            return None;
        }
        let mut table =
            Self { lines, section, masks, reach, width, above: Vec::new(), bonds: 0, last_rise: 0 };
        table.fill(stop)?;
        Some(table)
    }

    /// The first of the words that are made of this row, of which the first is 1.
    fn first_word(&self, row: usize) -> usize {
        let [rows, columns] = self.section.sizes();
        let first = row.saturating_sub(self.reach + rows.saturating_sub(columns)) / 64;
        first.min(self.masks.words - self.width)
    }

    /// Nothing where it was asked to stop.
    fn fill(&mut self, stop: &Stop<'_>) -> Option<()> {
        let [rows, columns] = self.section.sizes();
        let mut row = filled(EDGE, self.masks.words, stop)?;
        let mut block = filled(EDGE, BLOCK * self.width, stop)?;
        let blocks = rows.div_ceil(BLOCK);
        self.above = stop.room(blocks * self.width);
        let mut pace = Pace::default();
        for number in 0..blocks {
            if stop.is_set() || pace.after(BLOCK * self.width, stop) {
                return None;
            }
            let first = self.first_word(number * BLOCK + 1);
            self.above.extend_from_slice(&row[first..first + self.width]);
            if let Some(rise) = self.make_block(number, &mut row, &mut block, self.masks.words) {
                self.last_rise = rise;
            }
        }
        let rises = |column: &usize| row[column / 64].level >> (column % 64) & 1 == 0;
        self.bonds = (0..columns).filter(rises).count();
        Some(())
    }

    /// Makes the rows of a block from the one above it, which becomes the last of them; only words before `end`.
    /// Says in which row the score of the last column rose last.
    fn make_block(&self, number: usize, row: &mut [Cells], block: &mut [Cells], end: usize) -> Option<usize> {
        let mut last_rise = None;
        let rows = number * BLOCK + 1..self.section.sizes()[0].min((number + 1) * BLOCK) + 1;
        let start = self.section.from[0] + rows.start - 1;
        let bytes = &self.lines[0].bytes[start..start + rows.len()];
        let mut agree: [&[u64]; BLOCK] = [&self.masks.nowhere; BLOCK];
        for (agree, byte) in agree.iter_mut().zip(bytes) {
            *agree = self.masks.of(*byte);
        }
        for at in self.lines[0].unknown_in(start..start + rows.len()) {
            agree[at - start] = &self.masks.nowhere;
        }
        let mut made = 0;
        while made < rows.len() {
            let first = self.first_word(rows.start + made);
            let words = first..(first + self.width).min(end);
            let kept = &mut block[made * self.width..];
            let together =
                made + ROWS <= rows.len() && self.first_word(rows.start + made + ROWS - 1) == first;
            if words.is_empty() {
                break;
            }
            let agree = &agree[made..];
            let row = &mut row[words.clone()];
            let (rises, rows_made) = if together {
                let agree = std::array::from_fn(|row| &agree[row][words.clone()]);
                (advance::<ROWS>(row, agree, kept, self.width), ROWS)
            } else {
                (advance::<1>(row, [&agree[0][words]], kept, self.width), 1)
            };
            last_rise = rises.map(|row| rows.start + made + row).or(last_rise);
            made += rows_made;
        }
        last_rise
    }

    /// The runs of the best sequence, in order: from the last to the first, and turned round.
    fn runs(&self, end: End, stop: &Stop<'_>) -> Vec<Run> {
        let mut runs = Vec::new();
        let (Some(mut row), Some(mut block)) =
            (filled(EDGE, self.masks.words, stop), filled(EDGE, BLOCK * self.width, stop))
        else {
            return runs;
        };
        let mut made = usize::MAX;
        let [mut i, mut j] = self.section.sizes();
        // Of the last row that counts only the first cell that does.
        let mut ends = u64::MAX;
        if end == End::Early {
            (i, ends) = (self.last_rise, 0);
        }
        while i > 0 && j > 0 {
            let (word, bit) = ((j - 1) / 64, (j - 1) % 64);
            let number = (i - 1) / BLOCK;
            if number != made {
                made = number;
                let first = self.first_word(number * BLOCK + 1);
                row.fill(EDGE);
                row[first..first + self.width]
                    .copy_from_slice(&self.above[number * self.width..][..self.width]);
                self.make_block(number, &mut row, &mut block, word + 1);
            }
            let first = self.first_word(i);
            if word < first {
                // Left of what is made nothing changes from row to row.
                i -= 1;
                continue;
            }
            if word >= first + self.width {
                j = 64 * (first + self.width);
                continue;
            }
            let cells = block[(i - 1) % BLOCK * self.width + word - first];
            // What is nearest before: a run that ends, or a step of the score, which came from the row above.
            let stops = (cells.ends & ends | !cells.level) << (63 - bit);
            let passed = stops.leading_zeros() as usize;
            if passed > bit {
                j = 64 * word;
                continue;
            }
            j -= passed;
            ends = u64::MAX;
            if cells.ends >> (bit - passed) & 1 == 1 {
                let at = [self.section.from[0] + i, self.section.from[1] + j];
                let length = agree_before(self.lines, at, self.section.from);
                i -= length;
                j -= length;
                stop.push(&mut runs, Run { at: at.map(|at| at - length), length });
            } else {
                i -= 1;
            }
        }
        runs.reverse();
        runs
    }
}

/// Goes on from a row to the next ones, whose bytes stand at these columns; each is also put into its row of the block.
/// Says in which of them the score rose last in all that is behind.
fn advance<const ROWS: usize>(
    row: &mut [Cells],
    agree: [&[u64]; ROWS],
    block: &mut [Cells],
    width: usize,
) -> Option<usize> {
    let words = row.len();
    let agree = agree.map(|agree| &agree[..words]);
    let mut rest = block;
    let made: [&mut [Cells]; ROWS] = std::array::from_fn(|number| {
        let (made, behind) =
            std::mem::take(&mut rest).split_at_mut(width.min(if number + 1 == ROWS { words } else { width }));
        rest = behind;
        &mut made[..words]
    });
    let mut carry = [false; ROWS];
    let mut before = [0; ROWS];
    for word in 0..words {
        let mut cells = row[word];
        for number in 0..ROWS {
            let agree = agree[number][word];
            let goes_on = cells.ends << 1 | before[number];
            before[number] = cells.ends >> 63;
            let level = cells.level;
            // A run with which the score was reached goes on: the score rises, up to where it rose before.
            let rises = agree & goes_on & level;
            let (sum, one) = level.overflowing_add(rises);
            let (sum, other) = sum.overflowing_add(u64::from(carry[number]));
            carry[number] = one | other;
            // Where the score is what it was one byte before on both sides, a run can begin.
            let stays = level & sum & !rises;
            cells = Cells { level: sum | level & !rises, ends: agree & (goes_on | stays) };
            made[number][word] = cells;
        }
        row[word] = cells;
    }
    carry.iter().rposition(|rises| *rises)
}

#[cfg(test)]
#[path = "../../tests/units/script.rs"]
mod tests;
