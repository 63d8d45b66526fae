//! Both sides of a segment, side by side.
//!
//! Both texts are walked once. A *place* is a sync point: both sides have consumed the same text and stand
//! between two tokens. At a place the specials are paired by role and the one space is settled; from there a
//! chunk runs to the next place. Where the bytes differ, where one side ends before the other, and at an
//! opaque token, a difference begins; it ends at the place that [`resync`](crate::resync) finds, or at the end
//! of the segment, which is a place like others.

use super::cursor::{Cursor, Stand};
use super::roles::{self, Roles};
use super::spaces::holder_of_one_space;
use super::{Aligner, Counted, Counts, Segment, length_as_count};
use crate::blocks::Blocks;
use crate::found::Trace;
use crate::resync::Search;
use crate::side::{Side, Sides};
use crate::stop::{Pace, Stop};
use crate::vocabulary::Id;

/// Both sides of a segment, standing at the same place of the text.
pub struct Walk<'a, T> {
    roles: &'a Sides<Roles>,
    sides: Sides<Cursor<'a, T>>,
    /// Whether a dummy prefix may stand within the text of one of them.
    inner_prefixes: bool,
    stop: &'a Stop<'a>,
    pace: Pace,
    blocks: &'a mut Blocks,
    found: &'a mut Trace,
    counts: &'a mut Counts,
    /// Made at the first difference.
    search: Option<Search>,
    /// Bytes compared and tokens passed since the last search that led to no chunk.
    vain: usize,
}

/// What is read in search of the end of a chunk.
#[derive(Default)]
struct Reading {
    /// Bytes that agree.
    bytes: usize,
    /// Whether tokens of zero width are among them.
    encloses: bool,
    /// Whether tokens of both sides end behind them.
    ended: bool,
}

impl<'a, T: Id> Walk<'a, T> {
    /// Both sides at the start of the segment.
    pub fn new(
        aligner: &'a Aligner,
        segments: Sides<Segment<'a, T>>,
        stop: &'a Stop<'a>,
        blocks: &'a mut Blocks,
        found: &'a mut Trace,
        counts: &'a mut Counts,
    ) -> Self {
        let vocabularies = aligner.vocabularies.as_ref();
        let sides =
            vocabularies.zip(segments).map(|(vocabulary, segment)| Cursor::new(vocabulary, segment, stop));
        let inner_prefixes = vocabularies.teacher.inner_prefixes() || vocabularies.student.inner_prefixes();
        Self {
            roles: &aligner.roles,
            sides,
            inner_prefixes,
            stop,
            pace: Pace::default(),
            blocks,
            found,
            counts,
            search: None,
            vain: 0,
        }
    }

    /// Walks to the end, unless it is asked to stop.
    pub fn go(&mut self) {
        self.pass_place(true);
        loop {
            while !self.stop.is_set() && (self.take_chunks() || self.take_chunk()) {
                self.pass_place(false);
            }
            if self.stop.is_set() {
                return;
            }
            if !self.take_difference() {
                break;
            }
        }
        self.count_rest();
    }

    fn at_text(&self) -> bool {
        self.sides.teacher.at_text() && self.sides.student.at_text()
    }

    fn stands(&self) -> Sides<Stand<'a>> {
        self.sides.as_ref().map(|side| side.here)
    }

    // ---- Places ----------------------------------------------------------------------------------------

    /// Passes the tokens of zero width that stand here, pairs them by role, settles the one space.
    fn pass_place(&mut self, segment_starts: bool) {
        let Sides { teacher, student } = self.sides.as_mut();
        let text_goes_on = teacher.arrive() & student.arrive();
        if text_goes_on && !segment_starts && !self.inner_prefixes {
            return;
        }
        let may_prefix = self.sides.as_ref().map(Cursor::may_prefix_here);
        let mut settles = segment_starts;
        if !text_goes_on {
            settles |= self.pair_roles();
            let passed = self.sides.as_mut().map(Cursor::pass_zero_width);
            settles |= passed.teacher | passed.student;
        }
        self.settle_one_space(settles, may_prefix);
    }

    /// Pairs the specials with which the place opens; says whether there were any on either side.
    fn pair_roles(&mut self) -> bool {
        let passed = self.sides.as_mut().map(Cursor::pass_specials);
        let starts = passed.as_ref().map(|range| range.start);
        let specials = self.sides.as_ref().zip(passed).map(|(side, range)| &side.tokens[range]);
        roles::pair(self.roles, specials, |pair| {
            let Sides { teacher, student } = self.sides.as_mut();
            let (at, other) = (starts.teacher + pair.teacher, starts.student + pair.student);
            (teacher.unpaired, student.unpaired) = (at + 1, other + 1);
            self.counts.role += 1;
            self.found.push_role(teacher.column + at, student.column + other, self.stop);
        });
        !(specials.teacher.is_empty() && specials.student.is_empty())
    }

    /// Sets the one space aside, on either side where a segment starts or specials stand, else on one that may
    /// have a dummy prefix. Where a token was only the space, the specials behind it come to stand here: looks
    /// again.
    fn settle_one_space(&mut self, mut settles: bool, may_prefix: Sides<bool>) {
        while settles || may_prefix.teacher || may_prefix.student {
            let holder = holder_of_one_space(&mut self.sides);
            let Some(side) = holder.filter(|side| settles || may_prefix[*side]) else { return };
            let was_all = self.sides[side].set_space_aside();
            // "That byte is in no count", nor is a token that was only that byte.
            self.counts.add(side, Counted { tokens: -i64::from(was_all), bytes: -1, opaque: 0 });
            if !was_all {
                return;
            }
            settles |= self.sides[side].pass_zero_width();
        }
    }

    // ---- Chunks ----------------------------------------------------------------------------------------

    /// Takes the chunks of plain text that begin here, as many as a block has; false if there is none.
    fn take_chunks(&mut self) -> bool {
        if !self.at_text() {
            return false;
        }
        let Sides { teacher, student } = self.sides.as_mut();
        let common = self.blocks.next(teacher.plain(), student.plain());
        let Some(last) = common.ends.last() else {
            return false;
        };
        let space = teacher.here.holds_space || student.here.holds_space;
        let columns = (teacher.column + teacher.here.at, student.column + student.here.at);
        self.pace.after(common.bytes + Pace::TOKEN * common.ends.len(), self.stop);
        self.found.push_block(&common, columns.0, columns.1, space, self.stop);
        let with_space = space && common.begins_with_pair();
        self.counts.exact += length_as_count(common.pairs()) - i64::from(with_space);
        self.counts.space += i64::from(with_space);
        self.counts.chunk_bytes += length_as_count(common.bytes);
        self.counts.add(Side::Teacher, teacher.read_tokens(last.teacher().into(), common.bytes));
        self.counts.add(Side::Student, student.read_tokens(last.student().into(), common.bytes));
        true
    }

    /// Takes the chunk that begins here; false, and nothing moved, if the texts agree no further.
    fn take_chunk(&mut self) -> bool {
        if !self.at_text() {
            return false;
        }
        let stands = self.stands();
        let chunk = self.read_chunk();
        if chunk.ended {
            self.push_chunk(stands, &chunk);
        } else {
            self.vain += chunk.bytes;
            self.go_back(stands);
        }
        chunk.ended
    }

    /// Reads on while the texts agree, until tokens of both sides end.
    fn read_chunk(&mut self) -> Reading {
        let Sides { teacher, student } = self.sides.as_mut();
        let mut reading = Reading::default();
        loop {
            let length = teacher.here.rest.len().min(student.here.rest.len());
            if teacher.here.rest[..length] != student.here.rest[..length] {
                return reading;
            }
            reading.bytes += length;
            if self.pace.after(Pace::TOKEN + length, self.stop) {
                return reading;
            }
            let side = match (teacher.read(length), student.read(length)) {
                (true, true) => break,
                (true, false) => &mut *teacher,
                (false, _) => &mut *student,
            };
            reading.encloses |= side.go_on();
            if !side.at_text() {
                return reading;
            }
        }
        teacher.here.at += 1;
        student.here.at += 1;
        Reading { ended: true, ..reading }
    }

    fn push_chunk(&mut self, starts: Sides<Stand<'a>>, chunk: &Reading) {
        let both = self.sides.as_ref().zip(starts);
        let columns = both.map(|(side, start)| side.columns(start.at..side.here.at));
        let space = starts.teacher.holds_space || starts.student.holds_space;
        let is_pair = columns.teacher.len() == 1 && columns.student.len() == 1;
        self.counts.exact += i64::from(is_pair && !space);
        self.counts.space += i64::from(is_pair && space);
        self.counts.chunk_bytes += length_as_count(chunk.bytes);
        self.found.push_chunk(columns.teacher, columns.student, space, chunk.encloses, self.stop);
    }

    /// Goes back to where there is no chunk after all.
    fn go_back(&mut self, stands: Sides<Stand<'a>>) {
        let passed = self.sides.as_mut().zip(stands).map(|(side, stand)| side.go_back(stand));
        self.vain += passed.teacher + passed.student;
    }

    /// Counts the tokens that were not read with others of their block.
    fn count_rest(&mut self) {
        let search = self.search.as_ref();
        self.counts.add(
            Side::Teacher,
            self.sides.teacher.count_rest(search.map(|search| search.text(Side::Teacher))),
        );
        self.counts.add(
            Side::Student,
            self.sides.student.count_rest(search.map(|search| search.text(Side::Student))),
        );
    }

    // ---- Differences -----------------------------------------------------------------------------------

    /// Takes the difference that begins here and the chunk behind it; false where it reaches the end.
    fn take_difference(&mut self) -> bool {
        if self.sides.teacher.has_ended() && self.sides.student.has_ended() {
            return false;
        }
        for side in Side::BOTH {
            let bytes = i64::from(self.sides[side].take_space_back());
            self.counts.add(side, Counted { bytes, ..Counted::default() });
        }
        let starts = self.sides.as_ref().map(|side| side.here.at);
        while let Some(place) = self.next_place() {
            let (stretches, counts) = (self.found.stretches(), *self.counts);
            let ends = self.jump(place);
            let stands = self.stands();
            self.pass_place(true);
            if self.take_chunk() {
                self.push_difference(starts, ends);
                self.pass_place(false);
                return true;
            }
            // The one space was set aside, and the texts agree no more.
            self.found.forget(stretches);
            *self.counts = counts;
            self.go_back(stands);
            self.sides.teacher.unpaired = ends.teacher;
            self.sides.student.unpaired = ends.student;
        }
        let ends = self.jump(self.sides.as_ref().map(Cursor::last_place));
        self.push_difference(starts, ends);
        self.pass_place(true);
        false
    }

    /// The next tokens with which alignment can resume.
    fn next_place(&mut self) -> Option<Sides<usize>> {
        let search = (self.search)
            .get_or_insert_with(|| Search::new(self.sides.as_mut().map(Cursor::text), self.stop));
        if self.stop.is_set() {
            return None;
        }
        search.spend(std::mem::take(&mut self.vain));
        let sides = self.sides.as_ref();
        let tokens = search.next(sides.zip(search.texts()).map(|(side, text)| side.offset(text)))?;
        Some(sides.zip(tokens).map(|(side, token)| side.token(token)))
    }

    /// Goes to the tokens with which a difference ends, and returns them.
    fn jump(&mut self, to: Sides<usize>) -> Sides<usize> {
        let search = self.search.as_ref().expect("it ends where the search says");
        let to = to.zip(search.texts());
        self.sides.as_mut().zip(to).map(|(side, (token, text))| side.jump(token, text))
    }

    /// Where a side stands still, its empty range stands behind the tokens of zero width, whichever of them
    /// are in pairs: so it does not depend on which side is called the teacher.
    fn push_difference(&mut self, starts: Sides<usize>, ends: Sides<usize>) {
        let ranges = starts.zip(ends).map(|(start, end)| start..end.max(start));
        if !(ranges.teacher.is_empty() && ranges.student.is_empty()) {
            let columns = self.sides.as_ref().zip(ranges).map(|(side, range)| side.columns(range));
            self.found.push_difference(columns.teacher, columns.student, self.stop);
        }
    }
}
