//! A run: a stretch of bytes that is the same on both sides.

use crate::stop::Stop;

/// Where it begins on each side, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) at: [usize; 2],
    pub(super) length: usize,
}

impl Run {
    pub(super) fn end(&self) -> [usize; 2] {
        self.at.map(|at| at + self.length)
    }

    /// How much further it lies on the first side than on the second.
    pub(super) fn diagonal(&self) -> i64 {
        signed(self.at[0]) - signed(self.at[1])
    }

    /// Whether nothing of it lies behind this place.
    pub(super) fn is_before(&self, place: [usize; 2]) -> bool {
        self.end()[0] <= place[0] || self.end()[1] <= place[1]
    }

    /// Without what lies before this place.
    pub(super) fn clipped(self, place: [usize; 2]) -> Self {
        let cut = place[0].saturating_sub(self.at[0]).max(place[1].saturating_sub(self.at[1]));
        let cut = cut.min(self.length);
        Self { at: self.at.map(|at| at + cut), length: self.length - cut }
    }

    /// What of it lies before this place on both sides.
    pub(super) fn cut(self, place: [usize; 2]) -> Self {
        let most = place[0].saturating_sub(self.at[0]).min(place[1].saturating_sub(self.at[1]));
        Self { length: self.length.min(most), ..self }
    }

    /// How many of its bytes have their neighbour behind them.
    pub(super) fn bonds(&self) -> usize {
        self.length.saturating_sub(1)
    }

    /// The same in texts that are read from the last byte to the first, which have so many.
    pub(super) fn reversed(self, lengths: [usize; 2]) -> Self {
        let end = self.end();
        Self { at: [lengths[0] - end[0], lengths[1] - end[1]], length: self.length }
    }
}

/// These runs, those that go on where the one before ends as a part of it, and none that is empty.
pub(super) fn joined(runs: Vec<Run>, stop: &Stop<'_>) -> Vec<Run> {
    let mut joined: Vec<Run> = stop.room(runs.len());
    for run in runs.into_iter().filter(|run| run.length > 0) {
        match joined.last_mut() {
            Some(last) if last.end() == run.at => last.length += run.length,
            _ => stop.push(&mut joined, run),
        }
    }
    joined
}

/// A place or a length, to be subtracted from.
pub(super) fn signed(offset: usize) -> i64 {
    i64::try_from(offset).expect("offsets fit 32 bits")
}

/// How many bytes agree from the last one back.
pub(super) fn agreement_back(one: &[u8], other: &[u8]) -> usize {
    let (mut ones, mut others) = (one, other);
    while let (Some((rest, last)), Some((others_rest, others_last))) =
        (ones.split_last_chunk(), others.split_last_chunk())
    {
        let differing = u64::from_le_bytes(*last) ^ u64::from_le_bytes(*others_last);
        if differing != 0 {
            return one.len() - ones.len() + differing.leading_zeros() as usize / 8;
        }
        (ones, others) = (rest, others_rest);
    }
    let both = ones.iter().rev().zip(others.iter().rev());
    one.len() - ones.len() + both.take_while(|(one, other)| one == other).count()
}
