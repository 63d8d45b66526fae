//! Where two texts differ: the next place from which they agree again.
//!
//! Looked for are *runs*, stretches of bytes that are the same on both sides. A short one is believed
//! close by, a long one at any distance, and whatever reaches the end of both texts:
//!
//! 1. Once a segment, what both texts end with is set apart, and *anchors* are found before it: common
//!    runs of 16 bytes and more, by the hashes of blocks. Of these the best chain is kept, rising on both
//!    sides; a byte counts for it, distance against it, so that far away a run needs 32 bytes.
//! 2. From a difference to the next anchor the shortest edit script is followed (Myers 1986) until it has led
//!    to 8 bytes that agree, to the anchor, or over so many short runs that they cannot be chance. Changed
//!    accents, changed white space and edited words are found so, with all the runs between them.
//! 3. In a run alignment resumes at the first place that is a token boundary on both sides, or would be but
//!    for the one space, and has such a boundary behind it.
//!
//! Each step has a bound for its work, and what is searched in vain is skipped or, where it may have to be
//! looked at again, counted against a patience: all is linear in bytes and tokens. The two sides are told
//! apart by their content and not by their names, so that swapping them swaps the result.

#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::ops::Range;

use crate::blocks::agreement;
use crate::stop::Stop;
use crate::vocabulary::{Id, Kind, MAX_TOKEN_BYTES, NO_RECORD, RECORD, UNKNOWN_RECORD, Vocabulary};

/// Blocks whose hashes are looked for: how many bytes they have and how far they lie apart. Every run of
/// `size + stride - 1` bytes has one. Where all small ones are frequent, in tables, large ones are not.
const SMALL: usize = 12;
const SMALL_STRIDE: usize = 4;
const LARGE: usize = 32;
const LARGE_STRIDE: usize = 16;
/// Blocks that stand at more places than this say nothing about where they belong.
const MOST_PLACES: usize = 4;
/// Shortest anchor.
const ANCHOR: usize = 16;
/// Among how many anchors the best predecessor of an anchor is looked for: those just before it, and the
/// last ones of the best chains so far, since repetitive text has hundreds of short runs between long ones.
const LOOK_BACK: usize = 32;
const LEADERS: usize = 16;
/// Bytes skipped that cost a chain as much as one byte more that agrees, and the highest cost.
const SKIPPED_A_BYTE: usize = 8;
const MOST_COST: usize = 31;
/// Bytes compared in looking for anchors, for each byte of text.
const COMPARED_A_BYTE: usize = 32;
/// How often a long loop asks whether to stop.
const STRIDE: usize = 1 << 16;
/// What may be looked at in vain behind all differences, for each byte and each token.
const VAIN_A_BYTE: usize = 32;

/// Most insertions and deletions of an edit script.
const EDITS: usize = 256;
/// Bytes beyond chance that agree along an edit script of so many edits where every word was changed, as by a
/// change of normal form. In a one-off look, which no command here repeats, there were 24 to 113 between NFD and
/// NFC of Vietnamese, and mostly below 5, once 19, between pieces of text drawn at random.
const DENSE: usize = 18;
/// After so many edits a script is given up along which less than a third of this agrees beyond chance.
const GIVEN_UP: usize = EDITS / 2;
/// ... and already after so many where nothing does, or one byte, if the windows have no bytes in common at which
/// it can be believed and if at its pace [`EDITS`] do not lead to the end. In a one-off look nothing agreed beyond
/// chance after 32 edits in 280 of 323 scripts between pieces of text drawn at random. Without the look for bytes
/// in common 4 % of the pairs between collapsed white space were lost, with it none.
const GIVEN_UP_EARLY: usize = EDITS / 8;
const BELIEVED_EARLY: usize = AGREES + GIVEN_UP_EARLY / LONGER_AN_EDIT;
const GIVEN_UP_SOON: usize = EDITS / 4;
const BELIEVED_SOON: usize = AGREES + GIVEN_UP_SOON / LONGER_AN_EDIT;
/// How far an edit script is followed on each side.
const WINDOW: usize = 1024;
/// Bytes that agree behind an edit script, at which it is believed.
const AGREES: usize = 8;
/// ... and one more for each so many edits.
const LONGER_AN_EDIT: usize = 16;
/// Shortest run that is used inside an edit script.
const INSIDE: usize = 2;
/// How far back a run is followed for a token boundary.
const BACK: usize = 64;

/// The bytes of a text from a token on; a token of unknown bytes is one byte that equals nothing.
///
/// Offsets fit 32 bits: of a text of more than 4 GB the tokens behind are left out, and nothing is found there.
#[derive(Debug)]
pub struct Text {
    bytes: Vec<u8>,
    /// Where each token begins, and where the last one ends.
    starts: Vec<u32>,
    /// Where the tokens of unknown bytes stand.
    unknown: Vec<u32>,
}

/// What is written for unknown bytes; so is a byte that is known to be this one.
const UNKNOWN: u8 = 0xFF;
/// Tokens for which room is made at once.
const AT_ONCE: usize = 256;
/// Bytes of a token for which memory is reserved.
const USUAL_BYTES: usize = 5;
/// Bytes of a text behind which no more tokens are laid.
const MOST_BYTES: usize = u32::MAX as usize - AT_ONCE * MAX_TOKEN_BYTES;

impl Text {
    /// The text of these tokens.
    #[must_use]
    pub fn new(vocabulary: &Vocabulary, tokens: &[impl Id]) -> Self {
        let mut text = Self {
            bytes: Vec::with_capacity(USUAL_BYTES * tokens.len() + AT_ONCE * RECORD),
            starts: Vec::with_capacity(tokens.len() + 1),
            unknown: Vec::new(),
        };
        text.starts.push(0);
        for tokens in tokens.chunks(AT_ONCE) {
            if text.bytes.len() <= MOST_BYTES {
                text.push(vocabulary, tokens);
            }
        }
        text
    }

    /// Adds a few tokens.
    fn push(&mut self, vocabulary: &Vocabulary, tokens: &[impl Id]) {
        let mut laid = [0; AT_ONCE * RECORD];
        let mut end = 0;
        let Self { bytes, starts, unknown } = self;
        starts.extend(tokens.iter().map(|token| {
            let record = vocabulary.records().get(token.index()).unwrap_or(&UNKNOWN_RECORD);
            let length = record[RECORD - 1];
            if length == NO_RECORD {
                bytes.extend_from_slice(&laid[..end]);
                end = 0;
                bytes.extend_from_slice(vocabulary.bytes(*token));
                if vocabulary.kind(*token) == Kind::Opaque {
                    unknown.push(offset(bytes.len()));
                    bytes.push(UNKNOWN);
                }
            } else {
                laid[end..][..RECORD].copy_from_slice(record);
                end += usize::from(length);
            }
            offset(bytes.len() + end)
        }));
        bytes.extend_from_slice(&laid[..end]);
    }

    /// How many bytes these tokens have; nothing if some were left out.
    #[must_use]
    pub fn length_of(&self, tokens: Range<usize>) -> Option<usize> {
        Some((self.starts.get(tokens.end)? - self.starts.get(tokens.start)?) as usize)
    }

    /// Of these tokens how many have bytes, how many bytes, and how many are unknown; nothing if some were left out.
    #[must_use]
    pub fn count(&self, tokens: Range<usize>) -> Option<[usize; 3]> {
        let starts = self.starts.get(tokens.start..=tokens.end)?;
        let [first, last] = [starts[0], starts[starts.len() - 1]];
        let before = |end: u32| self.unknown.partition_point(|at| *at < end);
        let unknown = before(last) - before(first);
        let wide: usize = starts.windows(2).map(|both| usize::from(both[0] < both[1])).sum();
        Some([wide - unknown, (last - first) as usize - unknown, unknown])
    }

    /// Where this token begins; the end of the text if it was left out.
    #[must_use]
    pub fn start_of(&self, token: usize) -> usize {
        self.starts[token.min(self.starts.len() - 1)] as usize
    }

    /// The first token that begins here or behind.
    fn first_at(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| (*start as usize) < offset)
    }

    /// Whether a token begins here, which is the first that begins here or behind.
    fn begins_at(&self, token: usize, offset: usize) -> bool {
        self.starts.get(token).is_some_and(|start| *start as usize == offset)
    }

    /// From here on what is known.
    fn known_from(&self, start: usize, end: usize) -> &[u8] {
        let behind = self.unknown.partition_point(|at| (*at as usize) < start);
        let stop = self.unknown.get(behind).map_or(end, |at| end.min(*at as usize));
        &self.bytes[start..stop]
    }

    /// Back from here what is known.
    fn known_before(&self, start: usize, end: usize) -> &[u8] {
        let behind = self.unknown.partition_point(|at| (*at as usize) < end);
        let stop = behind.checked_sub(1).map_or(start, |last| start.max(self.unknown[last] as usize + 1));
        &self.bytes[stop..end]
    }
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("MOST_BYTES sees to it")
}

/// How many bytes agree from the last one back.
fn agreement_back(one: &[u8], other: &[u8]) -> usize {
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

/// A stretch that is the same on both sides: where it begins, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    at: [usize; 2],
    length: usize,
}

impl Run {
    fn end(&self) -> [usize; 2] {
        self.at.map(|at| at + self.length)
    }

    /// Whether nothing of it lies behind this place.
    fn is_before(&self, place: [usize; 2]) -> bool {
        self.end()[0] <= place[0] || self.end()[1] <= place[1]
    }

    /// Without what lies before this place.
    fn clipped(self, place: [usize; 2]) -> Self {
        let cut = place[0].saturating_sub(self.at[0]).max(place[1].saturating_sub(self.at[1]));
        let cut = cut.min(self.length);
        Self { at: self.at.map(|at| at + cut), length: self.length - cut }
    }
}

/// The search in one segment.
#[derive(Debug)]
pub struct Search {
    sides: [Text; 2],
    /// Whether the teacher's text is the second of the sides.
    swapped: bool,
    /// Anchors ahead, the nearest last.
    anchors: Vec<Run>,
    /// Runs of the latest edit script, the nearest last.
    near: Vec<Run>,
    /// How much more may be looked at in vain.
    patience: usize,
}

impl Search {
    /// A search in these texts, which begin with a difference.
    #[must_use]
    pub fn new(teacher: Text, student: Text, stop: &Stop) -> Self {
        let order = order(&teacher, &student);
        let swapped = order == Ordering::Greater;
        let sides = if swapped { [student, teacher] } else { [teacher, student] };
        let looked_at: usize = sides.iter().map(|side| side.bytes.len() + side.starts.len()).sum();
        let patience = VAIN_A_BYTE * looked_at;
        let mut search = Self { sides, swapped, anchors: Vec::new(), near: Vec::new(), patience };
        search.anchors = if order == Ordering::Equal { search.known() } else { search.find_anchors(stop) };
        search
    }

    /// The teacher's text.
    #[must_use]
    pub fn teacher(&self) -> &Text {
        &self.sides[usize::from(self.swapped)]
    }

    /// The student's text.
    #[must_use]
    pub fn student(&self) -> &Text {
        &self.sides[usize::from(!self.swapped)]
    }

    /// Says that so much was looked at in vain; where it was too much, no place is found any more.
    pub fn spend(&mut self, looked_at: usize) {
        self.patience = self.patience.saturating_sub(looked_at);
    }

    /// The next place behind this one, in offsets, where alignment can resume: a token of each side.
    pub fn next(&mut self, place: [usize; 2]) -> Option<[usize; 2]> {
        if self.patience == 0 {
            return None;
        }
        let place = self.named(place);
        if self.is_cut(place) {
            return None;
        }
        let mut found = self.resume_near(place);
        let mut start = place;
        while found.is_none() {
            while self.anchors.pop_if(|anchor| anchor.is_before(start)).is_some() {}
            let end = self.anchors.last().map_or_else(|| self.ends(), |anchor| anchor.clipped(start).at);
            self.near = self.follow_edits(place, start, end);
            found = self.resume_near(place);
            if found.is_none() {
                let anchor = self.anchors.pop()?;
                self.near = vec![anchor];
                found = self.resume_near(place);
                // What was searched in vain is not searched again.
                start = anchor.end();
            }
        }
        found.map(|tokens| self.named(tokens))
    }

    /// Whether one text goes on from here exactly as the other does until it ends: it was cut there.
    fn is_cut(&self, place: [usize; 2]) -> bool {
        let ends = self.ends();
        let left = (ends[0] - place[0]).min(ends[1] - place[1]);
        self.agreement(place, ends) == left
    }

    /// The next place in the runs at hand; those behind which alignment cannot resume are dropped.
    fn resume_near(&mut self, place: [usize; 2]) -> Option<[usize; 2]> {
        while let Some(run) = self.near.last() {
            let resumes = if run.is_before(place) { None } else { self.resume_in(*run, place) };
            if let Some([tokens, behind]) = resumes {
                // Where there is no chunk at this place, all this is looked at again.
                self.spend(behind[0] - tokens[0] + behind[1] - tokens[1]);
                return Some(tokens);
            }
            self.near.pop();
        }
        None
    }

    /// From the order of names to that of content, and back.
    fn named(&self, both: [usize; 2]) -> [usize; 2] {
        if self.swapped { [both[1], both[0]] } else { both }
    }

    fn ends(&self) -> [usize; 2] {
        [self.sides[0].bytes.len(), self.sides[1].bytes.len()]
    }

    /// How far the texts agree from here, at most to `end`.
    fn agreement(&self, at: [usize; 2], end: [usize; 2]) -> usize {
        let [one, other] = [0, 1].map(|side| self.sides[side].known_from(at[side], end[side]));
        agreement(one, other)
    }

    /// How far the texts agree before here, at most back to `start` and over at most so many bytes.
    fn agreement_before(&self, at: [usize; 2], start: [usize; 2], most: usize) -> usize {
        let [one, other] = [0, 1].map(|side| {
            let start = start[side].max(at[side].saturating_sub(most));
            self.sides[side].known_before(start, at[side])
        });
        agreement_back(one, other)
    }

    /// How many bytes of a run are no spaces: in source code runs of spaces agree by chance.
    fn without_spaces(&self, run: &Run) -> usize {
        let bytes = &self.sides[0].bytes[run.at[0]..run.end()[0]];
        bytes.iter().filter(|byte| **byte != b' ').count()
    }

    // ---- A run -> a place ----------------------------------------------------------------------------

    /// The first place in a run, behind `place`, that is a boundary on both sides, and the one behind it that
    /// ends a chunk.
    fn resume_in(&self, run: Run, place: [usize; 2]) -> Option<[[usize; 2]; 2]> {
        let run = run.clipped(place);
        let back = self.agreement_before(run.at, place, BACK);
        let run = Run { at: run.at.map(|at| at - back), length: run.length + back };
        let here = [0, 1].map(|side| self.token_at(side, place[side]));
        let mut shared = self.shared_boundaries(run, place);
        let (tokens, _) = shared.find(|(tokens, _)| *tokens != here)?;
        let (behind, _) = shared.find(|(_, exact)| *exact)?;
        Some([tokens, behind])
    }

    /// The token that begins here, or within which this lies.
    fn token_at(&self, side: usize, offset: usize) -> usize {
        let text = &self.sides[side];
        let first = text.first_at(offset);
        if text.begins_at(first, offset) { first } else { first - 1 }
    }

    /// The places in a run where a token begins on both sides, true, or would but for a space before one of
    /// them, false; the run's end is one of them. A place is the first token that stands there on each side.
    fn shared_boundaries(&self, run: Run, place: [usize; 2]) -> impl Iterator<Item = ([usize; 2], bool)> {
        let mut at = [0, 1].map(|side| self.sides[side].first_at(run.at[side]));
        std::iter::from_fn(move || {
            loop {
                let [one, other] = [0, 1].map(|side| self.boundary(side, at[side], run));
                let (one, other) = (one?, other?);
                let here = at;
                for (side, offset) in [one, other].into_iter().enumerate() {
                    if offset == one.min(other) {
                        at[side] = self.sides[side].first_at(run.at[side] + offset + 1);
                    }
                }
                let space =
                    |side: usize, offset: usize| self.space_before(side, run.at[side] + offset, place);
                match one.cmp(&other) {
                    Ordering::Equal => return Some((here, true)),
                    Ordering::Greater => {
                        if let Some(token) = space(0, other) {
                            return Some(([token, here[1]], false));
                        }
                    }
                    Ordering::Less => {
                        if let Some(token) = space(1, one) {
                            return Some(([here[0], token], false));
                        }
                    }
                }
            }
        })
    }

    /// Where in the run this token begins.
    fn boundary(&self, side: usize, token: usize, run: Run) -> Option<usize> {
        let offset = *self.sides[side].starts.get(token)? as usize - run.at[side];
        (offset <= run.length).then_some(offset)
    }

    /// The first token at the place one space before this, if the space begins a token behind `place`.
    fn space_before(&self, side: usize, offset: usize, place: [usize; 2]) -> Option<usize> {
        let text = &self.sides[side];
        let before = offset.checked_sub(1).filter(|before| *before >= place[side])?;
        let token = text.first_at(before);
        (text.begins_at(token, before) && text.bytes[before] == b' ').then_some(token)
    }

    // ---- Near: the shortest edit script --------------------------------------------------------------

    /// The runs of the shortest edit script from `start`, which is `place` or behind it, towards `end`, the
    /// nearest last; none if it leads nowhere.
    fn follow_edits(&self, place: [usize; 2], start: [usize; 2], end: [usize; 2]) -> Vec<Run> {
        let limit = [0, 1].map(|side| end[side].min(start[side] + WINDOW));
        let mut script = Script::new(self, place, start, limit);
        for edits in 0..=EDITS {
            match script.extend(edits, limit == end) {
                Extended::Agrees(number) => return script.runs(edits, number),
                Extended::Nowhere => return script.dense_runs(edits - 1),
                Extended::Onward => {}
            }
            if script.is_given_up(edits, limit == end) {
                return Vec::new();
            }
        }
        script.dense_runs(EDITS)
    }
}

/// Furthest-reaching paths of ever more edits; `x` on the first side, `y = x - diagonal` on the second.
///
/// So many edits lead to every other diagonal from `-edits` to `edits`, by that many numbers and one more.
struct Script<'a> {
    search: &'a Search,
    /// Behind it alignment is to resume.
    place: [usize; 2],
    /// Where the script starts: at `place`, or behind anchors that were of no use.
    start: [usize; 2],
    /// The bytes from there to where it ends.
    window: [&'a [u8]; 2],
    /// Whether some of these bytes are unknown.
    has_unknown: bool,
    /// For each number of edits the furthest `x` on its diagonals, or less than 0 where there is none.
    reached: Vec<i32>,
}

/// What came of one more edit.
enum Extended {
    /// The path to the diagonal of this number can be believed.
    Agrees(usize),
    /// The window has ended on every path.
    Nowhere,
    Onward,
}

/// Where no path leads.
const NOWHERE: i32 = i32::MIN / 2;

impl<'a> Script<'a> {
    fn new(search: &'a Search, place: [usize; 2], start: [usize; 2], limit: [usize; 2]) -> Self {
        let window = [0, 1].map(|side| &search.sides[side].bytes[start[side]..limit[side]]);
        let known = [0, 1].map(|side| search.sides[side].known_from(start[side], limit[side]).len());
        let has_unknown = known != window.map(<[u8]>::len);
        Self { search, place, start, window, has_unknown, reached: Vec::new() }
    }

    fn sizes(&self) -> [i32; 2] {
        self.window.map(|window| i32::try_from(window.len()).expect("a window is small"))
    }

    /// The furthest `x` after so many edits on each diagonal.
    fn row(&self, edits: usize) -> &[i32] {
        &self.reached[edits * (edits + 1) / 2..][..=edits]
    }

    /// Where the path to the diagonal of this number stands after its last edit, before it goes on along a run:
    /// behind a byte of the first side from the diagonal before, of the second from the one behind.
    fn after_edit(&self, row: &[i32], number: usize) -> i32 {
        let [width, height] = self.sizes();
        let diagonal = diagonal(row.len(), number);
        let left = if number > 0 { row[number - 1] } else { NOWHERE };
        let below = row.get(number).copied().unwrap_or(NOWHERE);
        let deleted = if left < width { left + 1 } else { NOWHERE };
        let inserted = if below - diagonal <= height { below } else { NOWHERE };
        deleted.max(inserted)
    }

    fn offsets(&self, x: i32, diagonal: i32) -> [usize; 2] {
        let [x, y] = [x, x - diagonal].map(|at| usize::try_from(at).expect("inside the window"));
        [self.start[0] + x, self.start[1] + y]
    }

    /// How far the texts agree from here.
    fn agreement(&self, x: i32, diagonal: i32) -> i32 {
        let [one, other] = self.window;
        let length = if self.has_unknown {
            let limit = [self.start[0] + one.len(), self.start[1] + other.len()];
            self.search.agreement(self.offsets(x, diagonal), limit)
        } else {
            let [x, y] = [x, x - diagonal].map(|at| usize::try_from(at).expect("inside the window"));
            agreement(&one[x..], &other[y..])
        };
        i32::try_from(length).expect("a window is small")
    }

    /// Takes one more edit on every diagonal.
    fn extend(&mut self, edits: usize, to_end: bool) -> Extended {
        let [width, height] = self.sizes();
        let believed = i32::try_from(AGREES + edits / LONGER_AN_EDIT).expect("edits are few");
        let mut best: Option<(i32, i32, usize)> = None;
        let mut reached = std::mem::take(&mut self.reached);
        let first = reached.len();
        reached.resize(first + edits + 1, NOWHERE);
        let (before, row) = reached.split_at_mut(first);
        let before = &before[first - edits..];
        for (number, x) in row.iter_mut().enumerate() {
            let diagonal = diagonal(edits, number);
            let start = if edits == 0 { 0 } else { self.after_edit(before, number) };
            if start < 0 {
                continue;
            }
            let length = self.agreement(start, diagonal);
            *x = start + length;
            if to_end && *x == width && *x - diagonal == height {
                best = Some((i32::MAX, 0, number));
            } else if length >= believed && self.resumes(start, diagonal, length) {
                best = best.max(Some((length, diagonal - 2 * start, number)));
            }
        }
        let is_nowhere = row.iter().all(|x| *x < 0);
        self.reached = reached;
        match best {
            Some((_, _, number)) => Extended::Agrees(number),
            None if is_nowhere => Extended::Nowhere,
            None => Extended::Onward,
        }
    }

    fn resumes(&self, start: i32, diagonal: i32, length: i32) -> bool {
        self.search.resume_in(self.run(start, diagonal, length), self.place).is_some()
    }

    fn run(&self, start: i32, diagonal: i32, length: i32) -> Run {
        Run { at: self.offsets(start, diagonal), length: usize::try_from(length).expect("runs go forward") }
    }

    /// The runs of the path of so many edits that ends on the diagonal of this number, the nearest last.
    fn runs(&self, last: usize, mut number: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        for edits in (0..=last).rev() {
            let before = if edits > 0 { self.row(edits - 1) } else { &[] };
            let start = if edits > 0 { self.after_edit(before, number) } else { 0 };
            let run = self.run(start, diagonal(edits, number), self.row(edits)[number] - start);
            // The last run reaches to what is known to agree.
            if run.length >= INSIDE || (run.length > 0 && edits == last) {
                runs.push(run);
            }
            let was_deleted = number > 0 && before[number - 1] >= 0 && before[number - 1] + 1 == start;
            number -= usize::from(was_deleted);
        }
        runs
    }

    /// The runs of the path that reaches furthest, but for its last one, if they cannot be chance: text whose
    /// every word was changed.
    fn dense_runs(&self, edits: usize) -> Vec<Run> {
        let mut runs = self.furthest_runs(edits);
        if self.beyond_chance(&runs) < DENSE {
            return Vec::new();
        }
        if runs.len() > 1 {
            runs.remove(0);
        }
        runs
    }

    /// Whether nothing more is expected of a script that has led nowhere in so many edits.
    fn is_given_up(&self, edits: usize, to_end: bool) -> bool {
        let agree = || self.beyond_chance(&self.furthest_runs(edits));
        match edits {
            GIVEN_UP_EARLY => agree() < DENSE / 18 && !self.may_go_on::<BELIEVED_EARLY>(edits, to_end),
            GIVEN_UP_SOON => agree() < DENSE / 9 && !self.may_go_on::<BELIEVED_SOON>(edits, to_end),
            GIVEN_UP => agree() < DENSE / 6,
            _ => false,
        }
    }

    /// Whether at its pace a script comes to the end, or there are so many bytes in common that it can be believed.
    fn may_go_on<const BELIEVED: usize>(&self, edits: usize, to_end: bool) -> bool {
        let passed = self.furthest(edits).map_or(0, |number| self.passed(edits, number));
        let times = i32::try_from(EDITS / edits).expect("edits are few");
        let comes_to_end = to_end && times * passed >= self.sizes().iter().sum();
        // Unknown bytes cut what agrees into short runs.
        self.has_unknown || comes_to_end || self.have_in_common::<BELIEVED>()
    }

    fn have_in_common<const SIZE: usize>(&self) -> bool {
        let [one, other] = self.window.map(|window| (window.len() + 1).saturating_sub(SIZE));
        let index = BlockIndex::<SIZE>::new(self.window[0], one, 0..one);
        (0..other).any(|at| index.places(self.window[1], at).is_none_or(|mut places| places.next().is_some()))
    }

    /// The runs of the path of so many edits that reaches furthest, the nearest last.
    fn furthest_runs(&self, edits: usize) -> Vec<Run> {
        self.furthest(edits).map_or_else(Vec::new, |number| self.runs(edits, number))
    }

    /// The number of the diagonal on which most bytes of both sides are passed.
    fn furthest(&self, edits: usize) -> Option<usize> {
        let reached = (0..=edits).filter(|number| self.row(edits)[*number] >= 0);
        reached.max_by_key(|number| self.passed(edits, *number))
    }

    fn passed(&self, edits: usize, number: usize) -> i32 {
        2 * self.row(edits)[number] - diagonal(edits, number)
    }

    /// How many bytes, the first ones of each run and spaces aside, agree in these runs.
    fn beyond_chance(&self, runs: &[Run]) -> usize {
        runs.iter().map(|run| self.search.without_spaces(run).saturating_sub(INSIDE)).sum()
    }
}

/// The diagonal of this number, of those to which so many edits lead.
fn diagonal(edits: usize, number: usize) -> i32 {
    let [edits, number] = [edits, number].map(|count| i32::try_from(count).expect("edits are few"));
    2 * number - edits
}

// ---- Far: anchors ------------------------------------------------------------------------------------------

impl Search {
    /// All known bytes of two texts that are the same, the nearest last: they agree wherever they are known.
    fn known(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        let ends = self.sides[0].unknown.iter().map(|at| *at as usize).chain([self.sides[0].bytes.len()]);
        let mut start = 0;
        for end in ends {
            if end > start {
                runs.push(Run { at: [start, start], length: end - start });
            }
            start = end + 1;
        }
        runs.reverse();
        runs
    }

    /// The anchors, the nearest last.
    fn find_anchors(&self, stop: &Stop) -> Vec<Run> {
        let ends = self.ends();
        let length = self.agreement_before(ends, [0, 0], usize::MAX);
        let is_whole = length > 0 && ends.contains(&length);
        let ending = Run { at: ends.map(|end| end - length), length };
        let keeps = length >= AGREES || is_whole;
        let limit = if keeps { ending.at } else { ends };
        let mut anchors = best_chain(&self.common_runs(limit, stop));
        if keeps {
            anchors.push(ending);
        }
        anchors.reverse();
        anchors
    }

    /// Maximal common runs before this place, at least as long as an anchor, in the order in which they begin
    /// on the second side.
    fn common_runs(&self, limit: [usize; 2], stop: &Stop) -> Vec<Run> {
        let mut found = Found { runs: Vec::new(), budget: COMPARED_A_BYTE * (limit[0] + limit[1]) };
        let small = [0, 1].map(|side| Places::of_blocks::<SMALL>(&self.sides[side], limit[side]));
        let [mut first, mut second] = small;
        first.keep_every(SMALL_STRIDE);
        self.find_runs::<SMALL>(limit, [&mut first, &mut second], &mut found, stop);
        // What is left are frequent blocks: only there large ones tell more.
        first.keep_every(LARGE_STRIDE);
        first.keep_those_of(&Places::of_blocks::<LARGE>(&self.sides[0], limit[0]));
        second.keep_those_of(&Places::of_blocks::<LARGE>(&self.sides[1], limit[1]));
        self.find_runs::<LARGE>(limit, [&mut first, &mut second], &mut found, stop);
        in_order(found.runs)
    }

    /// Finds the runs over blocks at these places. Of the places, those are left whose block the other side
    /// may have; on the second side only those whose block the first side has too often.
    fn find_runs<const SIZE: usize>(
        &self,
        limit: [usize; 2],
        [first, second]: [&mut Places; 2],
        found: &mut Found,
        stop: &Stop,
    ) {
        let [one, other] = [0, 1].map(|side| self.sides[side].bytes.as_slice());
        let most = first.count();
        let seen = Filter::new(most, first.iter(stop).map(|at| hash_at::<SIZE>(one, at)));
        second.retain(stop, |at| seen.may_have(hash_at::<SIZE>(other, at)));
        let most = most.min(second.count());
        let seen = Filter::new(most, second.iter(stop).map(|at| hash_at::<SIZE>(other, at)));
        first.retain(stop, |at| seen.may_have(hash_at::<SIZE>(one, at)));
        let index = BlockIndex::<SIZE>::new(one, first.count(), first.iter(stop));
        second.retain(stop, |at| {
            let Some(places) = index.places(other, at) else { return 1 };
            for from in places {
                self.find_run(limit, [from, at], found);
            }
            0
        });
    }

    /// Adds the run over this place unless it is known or short.
    fn find_run(&self, limit: [usize; 2], here: [usize; 2], found: &mut Found) {
        let covers = |run: &Run| !run.is_before(here) && is_on_diagonal(run, here);
        if found.budget == 0 || found.runs.iter().rev().take(4 * MOST_PLACES).any(covers) {
            return;
        }
        let back = self.agreement_before(here, [0, 0], usize::MAX);
        let length = back + self.agreement(here, limit);
        if length >= ANCHOR {
            found.runs.push(Run { at: here.map(|at| at - back), length });
        }
        found.budget = found.budget.saturating_sub(length);
    }
}

/// Runs found so far, and how many bytes may be compared to find more.
struct Found {
    runs: Vec<Run>,
    budget: usize,
}

fn is_on_diagonal(run: &Run, here: [usize; 2]) -> bool {
    run.at[0] + here[1] == here[0] + run.at[1]
}

/// The runs by where they begin on the second side, without those within a run twice as long.
fn in_order(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| [run.at[1], run.at[0]]);
    runs.dedup();
    let mut cover = Run { at: [0, 0], length: 0 };
    runs.retain(|run| {
        let is_within = run.end()[1] <= cover.end()[1] && 2 * run.length <= cover.length;
        if run.end()[1] > cover.end()[1] {
            cover = *run;
        }
        !is_within
    });
    runs
}

/// The chain of runs, rising on both sides, in which most bytes agree and least is skipped.
fn best_chain(runs: &[Run]) -> Vec<Run> {
    let mut scores: Vec<usize> = Vec::with_capacity(runs.len());
    let mut before: Vec<Option<usize>> = Vec::with_capacity(runs.len());
    let mut leaders: Vec<usize> = Vec::with_capacity(LEADERS + 1);
    for (index, run) in runs.iter().enumerate() {
        let mut best = (gain([0, 0], run).unwrap_or(0), None);
        for earlier in (index.saturating_sub(LOOK_BACK)..index).chain(leaders.iter().copied()) {
            let rises = runs[earlier].at[0] < run.at[0] && runs[earlier].at[1] < run.at[1];
            let gain = if rises { gain(runs[earlier].end(), run) } else { None };
            if let Some(score) = gain.map(|gain| scores[earlier] + gain).filter(|score| *score > best.0) {
                best = (score, Some(earlier));
            }
        }
        scores.push(best.0);
        before.push(best.1);
        let rank = leaders.partition_point(|leader| scores[*leader] >= best.0);
        leaders.insert(rank, index);
        leaders.truncate(LEADERS);
    }
    let mut chain: Vec<Run> = Vec::new();
    let mut at = leaders.first().copied().filter(|best| scores[*best] > 0);
    while let Some(index) = at {
        chain.push(runs[index]);
        at = before[index];
    }
    chain.reverse();
    chain
}

/// What a run adds to a chain that has come to this place; nothing if that is less than it costs.
fn gain(place: [usize; 2], run: &Run) -> Option<usize> {
    let clipped = run.clipped(place);
    let skipped = clipped.at[0].saturating_sub(place[0]).max(clipped.at[1].saturating_sub(place[1]));
    clipped.length.checked_sub((skipped / SKIPPED_A_BYTE).min(MOST_COST)).filter(|gain| *gain > 0)
}

/// Places of a text, a bit each.
struct Places(Vec<u64>);

impl Places {
    /// Where a block of this size, all of its bytes known, begins and ends before this.
    fn of_blocks<const SIZE: usize>(text: &Text, limit: usize) -> Self {
        let mut places = Self(vec![0; limit.div_ceil(64)]);
        let ends = text.unknown.iter().map(|at| *at as usize).take_while(|at| *at < limit).chain([limit]);
        let mut start = 0;
        for end in ends {
            if end >= start + SIZE {
                places.add(start, end + 1 - SIZE);
            }
            start = end + 1;
        }
        places
    }

    /// Adds all from `start` on, before `end`.
    fn add(&mut self, start: usize, end: usize) {
        for number in start / 64..end.div_ceil(64) {
            let before = start.saturating_sub(64 * number);
            let behind = (64 * number + 64).saturating_sub(end);
            self.0[number] |= u64::MAX >> behind & u64::MAX << before;
        }
    }

    /// Keeps those at multiples of a power of two that is at most 64.
    fn keep_every(&mut self, stride: usize) {
        let mask = (0..64).step_by(stride).fold(0, |mask, at| mask | 1 << at);
        self.0.iter_mut().for_each(|word| *word &= mask);
    }

    fn keep_those_of(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// All of them in order; no more once it was asked to stop.
    fn iter(&self, stop: &Stop) -> impl Iterator<Item = usize> {
        let goes_on = |(number, _): &(usize, &u64)| !(number.is_multiple_of(STRIDE / 64) && stop.is_set());
        let words = self.0.iter().enumerate().take_while(goes_on);
        words.flat_map(|(number, word)| bits(*word).map(move |bit| 64 * number + bit))
    }

    /// Keeps those of which this is 1 and not 0. Where it was asked to stop, what is left is good for nothing.
    fn retain(&mut self, stop: &Stop, mut keep: impl FnMut(usize) -> u64) {
        for (number, word) in self.0.iter_mut().enumerate() {
            if number.is_multiple_of(STRIDE / 64) && stop.is_set() {
                break;
            }
            let at = 64 * number;
            *word = if *word == u64::MAX {
                // Without a branch, so that many looks at memory are under way at once.
                (at..at + 64).fold(0, |kept, at| kept >> 1 | keep(at) << 63)
            } else {
                bits(*word).fold(0, |kept, bit| kept | keep(at + bit) << bit)
            };
        }
    }
}

/// Which bits are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// Hashes, so that most others are told from them: two bits each, of 12 to 24, in one word.
struct Filter {
    words: Vec<u64>,
    shift: u32,
}

impl Filter {
    /// Of these hashes, of which there are about so many.
    fn new(count: usize, hashes: impl Iterator<Item = u64>) -> Self {
        let size = (12 * count / 64).next_power_of_two().max(2);
        let mut filter = Self { words: vec![0; size], shift: 64 - size.trailing_zeros() };
        for hash in hashes {
            let word = filter.word(hash);
            let [one, other] = Self::bits(hash);
            filter.words[word] |= 1 << one | 1 << other;
        }
        filter
    }

    /// 1 if this hash may be one of them, else 0.
    fn may_have(&self, hash: u64) -> u64 {
        let word = self.words[self.word(hash)];
        let [one, other] = Self::bits(hash);
        (word >> one) & (word >> other) & 1
    }

    /// By the highest bits, on which all of the block has a bearing.
    fn word(&self, hash: u64) -> usize {
        as_index(hash >> self.shift)
    }

    fn bits(hash: u64) -> [u64; 2] {
        [hash >> 28 & 63, hash >> 34 & 63]
    }
}

/// Where blocks of a text stand.
struct BlockIndex<'a, const SIZE: usize> {
    bytes: &'a [u8],
    /// The last block of each hash; one more than its number.
    heads: Vec<u32>,
    /// For each block where it stands, and the block before it that has the same hash.
    blocks: Vec<[u32; 2]>,
    shift: u32,
}

impl<'a, const SIZE: usize> BlockIndex<'a, SIZE> {
    /// The blocks at these places, which are so many.
    fn new(bytes: &'a [u8], count: usize, places: impl Iterator<Item = usize>) -> Self {
        let size = count.next_power_of_two().max(2);
        let shift = 64 - size.trailing_zeros();
        let mut index = Self { bytes, heads: vec![0; size], blocks: Vec::with_capacity(count), shift };
        for at in places {
            let slot = index.slot(hash_at::<SIZE>(bytes, at));
            let number = offset(index.blocks.len() + 1);
            index.blocks.push([offset(at), std::mem::replace(&mut index.heads[slot], number)]);
        }
        index
    }

    /// The places of the block that stands here in another text; nothing if there are too many.
    fn places(&self, other: &[u8], at: usize) -> Option<impl Iterator<Item = usize> + use<SIZE>> {
        let block = &other[at..at + SIZE];
        let mut found = [0; MOST_PLACES];
        let (mut count, mut looked_at) = (0, 0);
        let mut head = self.heads[self.slot(hash_at::<SIZE>(other, at))];
        while head != 0 {
            if looked_at == 4 * MOST_PLACES {
                return None;
            }
            let [at, before] = self.blocks[head as usize - 1];
            let at = at as usize;
            if &self.bytes[at..at + SIZE] == block {
                *found.get_mut(count)? = at;
                count += 1;
            }
            looked_at += 1;
            head = before;
        }
        Some(found.into_iter().take(count))
    }

    fn slot(&self, hash: u64) -> usize {
        as_index(hash >> self.shift)
    }
}

fn as_index(number: u64) -> usize {
    usize::try_from(number).expect("a table fits memory")
}

/// The hash of the block that stands here: its highest bits depend on all bytes, lower ones on fewer.
#[inline]
fn hash_at<const SIZE: usize>(bytes: &[u8], at: usize) -> u64 {
    let block: &[u8; SIZE] = bytes[at..].first_chunk().expect("a block lies within the text");
    let last = block.last_chunk().map_or(0, |last| u64::from(u32::from_le_bytes(*last)));
    let hash = last.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let words = block.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(hash, |hash, word| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Which of the two texts comes first: by bytes, then by token boundaries.
fn order(teacher: &Text, student: &Text) -> Ordering {
    teacher
        .bytes
        .cmp(&student.bytes)
        .then_with(|| teacher.unknown.cmp(&student.unknown))
        .then_with(|| teacher.starts.cmp(&student.starts))
}
