//! The table of bits against the dynamic program that it is, cell by cell.

use proptest::prelude::*;
use proptest::sample::Index;

use super::{End, Section, best_runs};
use crate::resync::run::Run;
use crate::resync::text::Line;
use crate::stop::Stop;

/// What `script.rs` says at its head, one cell after the other.
fn by_definition(one: &Line, other: &Line, end: End) -> Vec<Run> {
    let agree = |row: usize, column: usize| {
        one.bytes[row - 1] == other.bytes[column - 1] && one.is_known(row - 1) && other.is_known(column - 1)
    };
    let mut score = vec![vec![0_i64; other.len() + 1]; one.len() + 1];
    let mut ends = vec![vec![-1_i64; other.len() + 1]; one.len() + 1];
    for row in 1..=one.len() {
        for column in 1..=other.len() {
            if agree(row, column) {
                ends[row][column] = score[row - 1][column - 1].max(ends[row - 1][column - 1] + 1);
            }
            score[row][column] = score[row - 1][column].max(score[row][column - 1]).max(ends[row][column]);
        }
    }
    let [mut row, mut column] = match end {
        End::Late => [one.len(), other.len()],
        End::Early => first_place_of(&score),
    };
    let mut runs = Vec::new();
    while row > 0 && column > 0 {
        if ends[row][column] == score[row][column] {
            let length = (0..=row)
                .take_while(|back| row > *back && column > *back && agree(row - back, column - back))
                .count();
            (row, column) = (row - length, column - length);
            runs.push(Run { at: [row, column], length });
        } else if score[row][column - 1] == score[row][column] {
            column -= 1;
        } else {
            row -= 1;
        }
    }
    runs.reverse();
    runs
}

/// The first row in which the best score is reached, and in it the first column.
fn first_place_of(score: &[Vec<i64>]) -> [usize; 2] {
    let best = score.last().and_then(|row| row.last()).expect("there are edges");
    let row = score.iter().position(|row| row.last() == Some(best)).expect("the last has it");
    let column = score[row].iter().position(|score| score == best).expect("the last has it");
    [row, column]
}

/// A text of so few letters that it repeats itself, and one made of it by edits; unknown bytes in both.
fn two_lines(most: usize) -> impl Strategy<Value = (Line, Line)> {
    let edits = prop::collection::vec((any::<Index>(), 0..4_u8, b'a'..b'e'), 0..40);
    let unknown = prop::collection::vec(any::<Index>(), 0..6);
    (prop::collection::vec(b'a'..b'd', 1..most), edits, unknown.clone(), unknown).prop_map(
        |(bytes, edits, unknown, others_unknown)| {
            let mut other = bytes.clone();
            for (place, edit, byte) in edits {
                let at = place.index(other.len() + 1);
                match edit {
                    0 => drop(other.splice(at..at, [byte])),
                    1 => drop(other.splice(at..at, bytes[..bytes.len().min(30)].to_vec())),
                    2 => drop(other.drain(at..other.len().min(at + 40))),
                    _ => other.iter_mut().skip(at).take(1).for_each(|old| *old = byte),
                }
            }
            (line(bytes, &unknown), line(other, &others_unknown))
        },
    )
}

fn line(mut bytes: Vec<u8>, unknown: &[Index]) -> Line {
    let mut places: Vec<usize> =
        unknown.iter().filter(|_| !bytes.is_empty()).map(|at| at.index(bytes.len())).collect();
    places.sort_unstable();
    places.dedup();
    for at in &places {
        bytes[*at] = 0xFF;
    }
    Line { bytes, unknown: places.into_iter().map(|at| u32::try_from(at).expect("small")).collect() }
}

fn found(one: &Line, other: &Line, end: End) -> Vec<Run> {
    let section = Section { from: [0, 0], to: [one.len(), other.len()] };
    best_runs([one, other], section, end, &Stop::default()).expect("it fits a table")
}

proptest! {
    #[test]
    fn the_table_equals_its_definition((one, other) in two_lines(50)) {
        prop_assert_eq!(found(&one, &other, End::Late), by_definition(&one, &other, End::Late));
    }

    #[test]
    fn the_earliest_end_equals_its_definition((one, other) in two_lines(50)) {
        prop_assert_eq!(found(&one, &other, End::Early), by_definition(&one, &other, End::Early));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn many_blocks_and_a_narrow_band_equal_the_definition((one, other) in two_lines(700)) {
        prop_assert_eq!(found(&one, &other, End::Late), by_definition(&one, &other, End::Late));
        prop_assert_eq!(found(&other, &one, End::Late), by_definition(&other, &one, End::Late));
    }
}

#[test]
fn a_table_that_is_too_large_is_refused() {
    let one = Line { bytes: b"ab".repeat(6_000), unknown: Vec::new() };
    let other = Line { bytes: b"cd".repeat(6_000), unknown: Vec::new() };
    let section = Section { from: [0, 0], to: [one.len(), other.len()] };
    assert_eq!(best_runs([&one, &other], section, End::Late, &Stop::default()), None);
}
