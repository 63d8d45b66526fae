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

use super::run::Run;
use super::text::{Line, agree_before};

/// Words of 64 cells that one table may have: 8192 by 8192 bytes, a few milliseconds.
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
pub(super) fn best_runs(lines: [&Line; 2], section: Section, end: End) -> Option<Vec<Run>> {
    let [rows, columns] = section.sizes();
    if rows == 0 || columns == 0 {
        return Some(Vec::new());
    }
    let masks = Masks::new(lines[1], section.from[1]..section.to[1]);
    let mut reach = FIRST_REACH;
    loop {
        let table = Table::new(lines, section, &masks, reach)?;
        let needed = rows.min(columns) - table.bonds;
        if needed <= reach || table.width == masks.words {
            return Some(table.runs(end));
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
    fn new(line: &Line, range: Range<usize>) -> Self {
        let words = range.len().div_ceil(64);
        let mut bits = vec![0_u64; 256 * words];
        for (column, byte) in line.bytes[range.clone()].iter().enumerate() {
            bits[usize::from(*byte) * words + column / 64] |= 1 << (column % 64);
        }
        for at in line.unknown_in(range.clone()) {
            let column = at - range.start;
            bits[usize::from(line.bytes[at]) * words + column / 64] &= !(1 << (column % 64));
        }
        Self { words, bits, nowhere: vec![0; words] }
    }

    fn of(&self, byte: u8) -> &[u64] {
        &self.bits[usize::from(byte) * self.words..][..self.words]
    }
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
    fn new(lines: [&'a Line; 2], section: Section, masks: &'a Masks, reach: usize) -> Option<Self> {
        let [rows, columns] = section.sizes();
        let width = ((rows.abs_diff(columns) + 2 * reach) / 64 + 2).min(masks.words);
        if rows.checked_mul(width)? > MOST_WORDS {
            return None;
        }
        let mut table = Self { lines, section, masks, reach, width, above: Vec::new(), bonds: 0, last_rise: 0 };
        table.fill();
        Some(table)
    }

    /// The first of the words that are made of this row, of which the first is 1.
    fn first_word(&self, row: usize) -> usize {
        let [rows, columns] = self.section.sizes();
        let first = row.saturating_sub(self.reach + rows.saturating_sub(columns)) / 64;
        first.min(self.masks.words - self.width)
    }

    fn fill(&mut self) {
        let [rows, columns] = self.section.sizes();
        let mut row = vec![EDGE; self.masks.words];
        let mut block = vec![EDGE; BLOCK * self.width];
        for number in 0..rows.div_ceil(BLOCK) {
            let first = self.first_word(number * BLOCK + 1);
            self.above.extend_from_slice(&row[first..first + self.width]);
            if let Some(rise) = self.make_block(number, &mut row, &mut block, self.masks.words) {
                self.last_rise = rise;
            }
        }
        self.bonds = (0..columns).filter(|column| row[column / 64].level >> (column % 64) & 1 == 0).count();
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
            let together = made + ROWS <= rows.len() && self.first_word(rows.start + made + ROWS - 1) == first;
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
    fn runs(&self, end: End) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut block = vec![EDGE; BLOCK * self.width];
        let mut made = usize::MAX;
        let mut row = vec![EDGE; self.masks.words];
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
                row[first..first + self.width].copy_from_slice(&self.above[number * self.width..][..self.width]);
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
                runs.push(Run { at: at.map(|at| at - length), length });
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
fn advance<const ROWS: usize>(row: &mut [Cells], agree: [&[u64]; ROWS], block: &mut [Cells], width: usize) -> Option<usize> {
    let words = row.len();
    let agree = agree.map(|agree| &agree[..words]);
    let mut rest = block;
    let made: [&mut [Cells]; ROWS] = std::array::from_fn(|number| {
        let (made, behind) = std::mem::take(&mut rest).split_at_mut(width.min(if number + 1 == ROWS { words } else { width }));
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
mod tests {
    use super::*;

    fn line(bytes: &[u8], unknown: &[u32]) -> Line {
        Line { bytes: bytes.to_vec(), unknown: unknown.to_vec() }
    }

    fn slow(a: &Line, b: &Line) -> (i64, Vec<Run>) {
        let (n, m) = (a.len(), b.len());
        let low = i64::MIN / 4;
        let mut score = vec![vec![0_i64; m + 1]; n + 1];
        let mut ends = vec![vec![low; m + 1]; n + 1];
        let known = |l: &Line, i: usize| !l.unknown.contains(&(i as u32));
        for i in 1..=n {
            for j in 1..=m {
                if a.bytes[i - 1] == b.bytes[j - 1] && known(a, i - 1) && known(b, j - 1) {
                    ends[i][j] = ends[i - 1][j - 1].max(score[i - 1][j - 1] - 1) + 1;
                }
                score[i][j] = score[i - 1][j].max(score[i][j - 1]).max(ends[i][j]);
            }
        }
        let (mut i, mut j) = (n, m);
        let mut runs = vec![];
        while i > 0 && j > 0 {
            if ends[i][j] == score[i][j] {
                let mut length = 0;
                while i > 0 && j > 0 && ends[i][j] > low {
                    i -= 1;
                    j -= 1;
                    length += 1;
                }
                runs.push(Run { at: [i, j], length });
            } else if score[i][j - 1] == score[i][j] {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        runs.reverse();
        (score[n][m], runs)
    }

    #[test]
    fn equals_slow() {
        let mut seed = 1_u64;
        let mut next = |most: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % most
        };
        for round in 0..3000 {
            let letters = 2 + next(5);
            let n = next(if round % 10 == 0 { 700 } else { 40 }) as usize;
            let a: Vec<u8> = (0..n).map(|_| b'a' + next(letters) as u8).collect();
            let mut b = Vec::new();
            let rate = 1 + next(30);
            for byte in &a {
                match next(rate) {
                    0 => {}
                    1 => b.extend([b'a' + next(letters) as u8, *byte]),
                    2 => b.push(b'a' + next(letters) as u8),
                    _ => b.push(*byte),
                }
            }
            if round % 7 == 0 { b = (0..next(60)).map(|_| b'a' + next(letters) as u8).collect(); }
            let ua: Vec<u32> = (0..a.len() as u32).filter(|_| round % 3 == 0 && next(9) == 0).collect();
            let ub: Vec<u32> = (0..b.len() as u32).filter(|_| round % 3 == 0 && next(9) == 0).collect();
            let (a, b) = (line(&a, &ua), line(&b, &ub));
            let (_, runs) = slow(&a, &b);
            let found = best_runs([&a, &b], Section { from: [0, 0], to: [a.len(), b.len()] }, End::Late).unwrap();
            assert_eq!(found, runs, "{round} {:?} {:?}", a, b);
        }
    }
}
#[cfg(test)]
mod speed {
    use super::*;
    #[test]
    fn speed() {
        let mut seed = 1_u64;
        let mut next = |most: u64| { seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (seed >> 33) % most };
        for n in [256, 1024, 2048, 4096_usize] {
            let a: Vec<u8> = (0..n).map(|_| b'a' + next(20) as u8).collect();
            let b: Vec<u8> = (0..n).map(|_| b'a' + next(20) as u8).collect();
            let (a, b) = (Line { bytes: a, unknown: vec![] }, Line { bytes: b, unknown: vec![] });
            let s = Section { from: [0, 0], to: [n, n] };
            fn best(mut f: impl FnMut()) -> f64 { (0..40).map(|_| { let t = std::time::Instant::now(); f(); t.elapsed().as_nanos() as u64 }).min().unwrap() as f64 }
            let all = best(|| { std::hint::black_box(best_runs([&a, &b], s, End::Late)); });
            let masks = Masks::new(&b, 0..n);
            let m = best(|| { std::hint::black_box(Masks::new(&b, 0..n)); });
            let full = best(|| { std::hint::black_box(Table::new([&a, &b], s, &masks, n)); });
            let table = Table::new([&a, &b], s, &masks, n).unwrap();
            let tr = best(|| { std::hint::black_box(table.runs(End::Late)); });
            eprintln!("{n}: all {:.0} us, masks {:.0}, full {:.0} = {:.2} ns/word, trace {:.0}", all / 1e3, m / 1e3, full / 1e3, full / (n * n / 64) as f64, tr / 1e3);
        }
    }
}
