//! One pair of token sequences -> pairs, chunks and differences. Slices in, slices out, no threads.
//!
//! Both texts are walked once, side by side. A *place* is a sync point: both sides have consumed the
//! same text and stand between two tokens. At a place the specials are paired by role and the one
//! space is settled; from there a chunk runs to the next place. Where the bytes differ, where one side
//! ends before the other, and at an opaque token, a difference begins; it ends at the place that
//! [`resync`](crate::resync) finds, or at the end of the segment, which is a place like others.
//!
//! Every loop moves forward over tokens or bytes that it has not seen, but for two: the measuring of runs of
//! spaces remembers how far it looked, and what was read of a chunk that does not end is counted, until the
//! search has no patience left. So the walk is linear whatever the input.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::blocks::{Blocks, Plain};
use crate::found::Counted;
use crate::found::Trace;
pub use crate::found::{Counts, PairKind, Pairs, Ranges};
use crate::resync::{Search, Text};
use crate::side::Side;
use crate::stop::{Pace, Stop};
use crate::vocabulary::{Id, Kind, Vocabulary};

/// The two vocabularies and the roles that their specials share: all that alignment needs to know.
#[derive(Debug)]
pub struct Aligner {
    teacher: Arc<Vocabulary>,
    student: Arc<Vocabulary>,
    teacher_roles: RoleNumbers,
    student_roles: RoleNumbers,
}

/// For every special id, the numbers of the roles that can pair it.
type RoleNumbers = HashMap<usize, Vec<usize>>;

impl Aligner {
    /// An aligner of texts in these two vocabularies.
    #[must_use]
    pub fn new(teacher: Arc<Vocabulary>, student: Arc<Vocabulary>) -> Self {
        let shared = shared_roles(&teacher, &student);
        Self {
            teacher_roles: number_roles(&teacher, &shared),
            student_roles: number_roles(&student, &shared),
            teacher,
            student,
        }
    }

    /// The teacher's vocabulary.
    #[must_use]
    pub fn teacher(&self) -> &Vocabulary {
        &self.teacher
    }

    /// The student's vocabulary.
    #[must_use]
    pub fn student(&self) -> &Vocabulary {
        &self.student
    }
}

/// The roles that both vocabularies name, less those that never pair.
fn shared_roles<'a>(teacher: &'a Vocabulary, student: &Vocabulary) -> HashMap<&'a str, usize> {
    let named: HashSet<&String> = student.roles().values().flatten().collect();
    let mut shared = HashMap::new();
    for role in teacher.roles().values().flatten() {
        if !matches!(role.as_str(), "pad" | "unk") && named.contains(role) {
            let next = shared.len();
            shared.entry(role.as_str()).or_insert(next);
        }
    }
    shared
}

fn number_roles(vocabulary: &Vocabulary, shared: &HashMap<&str, usize>) -> RoleNumbers {
    let specials = vocabulary.roles().iter().filter(|(id, _)| vocabulary.kind(**id) == Kind::Special);
    let numbers = |role: &String| shared.get(role.as_str()).copied();
    specials.map(|(id, roles)| (id.index(), roles.iter().filter_map(numbers).collect())).collect()
}

/// A stretch of one row on one side: its ids, and the column of the first. An id that is not in the vocabulary
/// is taken for an opaque one.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a, T> {
    /// The ids.
    pub tokens: &'a [T],
    /// Where the first of them stands in its row.
    pub column: usize,
}

impl<T> Segment<'_, T> {
    /// The segment of no tokens that stands here.
    #[must_use]
    pub fn empty(column: usize) -> Self {
        Self { tokens: &[], column }
    }

    /// The column after the last token.
    #[must_use]
    pub fn end(&self) -> usize {
        self.column + self.tokens.len()
    }
}

/// Aligns two segments as texts of their own; appends what it finds and counts it. Where it was asked to
/// stop, what it found is good for nothing.
pub fn align_segments<T: Id>(
    aligner: &Aligner,
    teacher: Segment<'_, T>,
    student: Segment<'_, T>,
    stop: &Stop<'_>,
    blocks: &mut Blocks,
    found: &mut Trace,
    counts: &mut Counts,
) {
    let mut walk = Walk {
        aligner,
        teacher: Cursor::new(&aligner.teacher, teacher, stop),
        student: Cursor::new(&aligner.student, student, stop),
        stop,
        pace: Pace::default(),
        blocks,
        found,
        counts,
        search: None,
        vain: 0,
    };
    walk.pass_place(true);
    loop {
        while !stop.is_set() && (walk.take_chunks() || walk.take_chunk()) {
            walk.pass_place(false);
        }
        if stop.is_set() {
            return;
        }
        if !walk.take_difference() {
            break;
        }
    }
    walk.count_tokens();
}

/// Records a segment that has no counterpart; the empty side stands where it is given.
pub fn surplus_segments<T: Id>(
    aligner: &Aligner,
    teacher: Segment<'_, T>,
    student: Segment<'_, T>,
    stop: &Stop<'_>,
    found: &mut Trace,
    counts: &mut Counts,
) {
    counts.add(Side::Teacher, count_text(&aligner.teacher, teacher.tokens, stop));
    counts.add(Side::Student, count_text(&aligner.student, student.tokens, stop));
    if !(teacher.tokens.is_empty() && student.tokens.is_empty()) {
        found.push_difference(teacher.column..teacher.end(), student.column..student.end(), stop);
    }
}

/// Tokens of which is asked once whether to stop.
const AT_ONCE: usize = 1 << 12;

/// What these tokens add to the counts; anything where there is a reason to stop.
fn count_text(vocabulary: &Vocabulary, tokens: &[impl Id], stop: &Stop<'_>) -> Counted {
    let mut counted = Counted::default();
    let mut pace = Pace::default();
    for tokens in tokens.chunks(AT_ONCE) {
        for token in tokens {
            let length = length_as_count(vocabulary.bytes(*token).len());
            counted.tokens += i64::from(length > 0);
            counted.bytes += length;
            counted.opaque += i64::from(vocabulary.kind(*token) == Kind::Opaque);
        }
        if pace.after_tokens(tokens.len(), stop) {
            break;
        }
    }
    counted
}

/// Both sides of a segment, standing at the same place of the text.
struct Walk<'a, T> {
    aligner: &'a Aligner,
    teacher: Cursor<'a, T>,
    student: Cursor<'a, T>,
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

impl<'a, T: Id> Walk<'a, T> {
    /// Passes the tokens of zero width that stand here, pairs them by role, settles the one space.
    fn pass_place(&mut self, segment_starts: bool) {
        self.teacher.unpaired = self.teacher.at;
        self.student.unpaired = self.student.at;
        let text_goes_on = self.teacher.take_up() & self.student.take_up();
        if text_goes_on && !segment_starts {
            return;
        }
        let mut settles = segment_starts | self.pair_roles();
        settles |= self.teacher.pass_zero_width();
        settles |= self.student.pass_zero_width();
        // Where a token was only the space, the specials behind it come to stand here: look again.
        while settles {
            settles = self.set_one_space_aside();
        }
    }

    /// Pairs the specials with which the place opens; says whether there were any on either side.
    ///
    /// From left to right on the teacher's side, each with the first student special behind the last
    /// pair that shares a role; of a run of one repeated special only the first takes part.
    fn pair_roles(&mut self) -> bool {
        let (start, others_start) = (self.teacher.at, self.student.at);
        if self.teacher.is_at_lone_special() && self.student.is_at_lone_special() {
            self.teacher.at += 1;
            self.student.at += 1;
            self.pair_if_of_one_role(start, others_start);
            return true;
        }
        let teachers = self.teacher.pass_specials();
        let students = self.student.pass_specials();
        let last = self.last_student_of_each_role(&students);
        let mut next = 0;
        for teacher in teachers {
            if self.pace.after_tokens(1, self.stop) {
                break;
            }
            let roles = self.aligner.teacher_roles_of(self.teacher.tokens[teacher]);
            if !roles.iter().any(|role| last.get(role).is_some_and(|last| *last >= next)) {
                continue;
            }
            let shares = |student: &usize| {
                let others = self.aligner.student_roles_of(self.student.tokens[*student]);
                others.iter().any(|role| roles.contains(role))
            };
            let ahead = students[next..].iter().position(shares).expect("the last of a role is ahead");
            self.push_role(teacher, students[next + ahead]);
            next += ahead + 1;
        }
        self.teacher.at > start || self.student.at > others_start
    }

    fn pair_if_of_one_role(&mut self, teacher: usize, student: usize) {
        let roles = self.aligner.teacher_roles_of(self.teacher.tokens[teacher]);
        let others = self.aligner.student_roles_of(self.student.tokens[student]);
        if roles.iter().any(|role| others.contains(role)) {
            self.push_role(teacher, student);
        }
    }

    fn push_role(&mut self, teacher: usize, student: usize) {
        self.counts.role += 1;
        self.found.push_role(self.teacher.column + teacher, self.student.column + student, self.stop);
        self.teacher.unpaired = teacher + 1;
        self.student.unpaired = student + 1;
    }

    /// For each role the index of the last special that can pair by it: without it, a place of many
    /// specials that share no role would be searched once for each of them.
    fn last_student_of_each_role(&self, students: &[usize]) -> HashMap<usize, usize> {
        let mut last = HashMap::new();
        for (index, at) in students.iter().enumerate() {
            let roles = self.aligner.student_roles_of(self.student.tokens[*at]);
            last.extend(roles.iter().map(|role| (*role, index)));
        }
        last
    }

    /// Sets the longer side's first space aside where the opening runs of spaces, read up to the next
    /// special, differ by exactly one; not where they are equal once read on through specials.
    fn set_one_space_aside(&mut self) -> bool {
        let teacher = self.teacher.spaces_to_special();
        let student = self.student.spaces_to_special();
        if teacher.abs_diff(student) != 1 || self.teacher.all_spaces() == self.student.all_spaces() {
            return false;
        }
        // "That byte is in no count", nor is a token that was only that byte.
        if teacher > student {
            self.counts.teacher_bytes -= 1;
            self.counts.teacher_tokens -= i64::from(self.teacher.set_space_aside());
        } else {
            self.counts.student_bytes -= 1;
            self.counts.student_tokens -= i64::from(self.student.set_space_aside());
        }
        true
    }

    /// Takes the chunks of plain text that begin here, as many as a block has; false if there is none.
    fn take_chunks(&mut self) -> bool {
        if !(self.teacher.at_text() && self.student.at_text()) {
            return false;
        }
        let common = self.blocks.next(self.teacher.plain(), self.student.plain());
        let Some(last) = common.ends.last() else {
            return false;
        };
        let space = self.teacher.held_space || self.student.held_space;
        let columns = (self.teacher.column + self.teacher.at, self.student.column + self.student.at);
        self.pace.after(common.bytes + Pace::TOKEN * common.ends.len(), self.stop);
        self.found.push_block(&common, columns.0, columns.1, space, self.stop);
        let with_space = space && common.begins_with_pair();
        self.counts.exact += length_as_count(common.pairs()) - i64::from(with_space);
        self.counts.space += i64::from(with_space);
        self.counts.chunk_bytes += length_as_count(common.bytes);
        self.counts.add(Side::Teacher, self.teacher.read_tokens(last.teacher().into(), common.bytes));
        self.counts.add(Side::Student, self.student.read_tokens(last.student().into(), common.bytes));
        true
    }

    /// Counts the tokens that were not read with others of their block.
    fn count_tokens(&mut self) {
        let search = self.search.as_ref();
        self.counts.add(Side::Teacher, self.teacher.count_rest(search.map(Search::teacher)));
        self.counts.add(Side::Student, self.student.count_rest(search.map(Search::student)));
    }

    /// Takes the chunk that begins here; false, and nothing moved, if the texts agree no further.
    fn take_chunk(&mut self) -> bool {
        if !(self.teacher.at_text() && self.student.at_text()) {
            return false;
        }
        let (teacher_start, student_start) = (self.teacher.at, self.student.at);
        let before = (self.teacher.stand(), self.student.stand());
        let space = self.teacher.held_space || self.student.held_space;
        let mut bytes = 0;
        let mut encloses = false;
        loop {
            let length = self.teacher.rest.len().min(self.student.rest.len());
            if self.teacher.rest[..length] != self.student.rest[..length] {
                break;
            }
            bytes += length;
            if self.pace.after(Pace::TOKEN + length, self.stop) {
                break;
            }
            self.teacher.read(length);
            self.student.read(length);
            let ended = (self.teacher.rest.is_empty(), self.student.rest.is_empty());
            if ended == (true, true) {
                self.teacher.at += 1;
                self.student.at += 1;
                self.push_chunk(teacher_start, student_start, bytes, space, encloses);
                return true;
            }
            let side = if ended.0 { &mut self.teacher } else { &mut self.student };
            side.at += 1;
            let expected = side.at;
            side.pass_zero_width();
            encloses |= side.at > expected;
            if !side.at_text() {
                break;
            }
        }
        self.vain += bytes;
        self.go_back(before);
        false
    }

    /// Goes back to where there is no chunk after all.
    fn go_back(&mut self, (teacher, student): (Stand<'a>, Stand<'a>)) {
        self.vain += self.teacher.at - teacher.0 + self.student.at - student.0;
        self.teacher.stand_at(teacher);
        self.student.stand_at(student);
    }

    fn push_chunk(&mut self, teacher: usize, student: usize, bytes: usize, space: bool, encloses: bool) {
        let teachers = self.teacher.columns(teacher..self.teacher.at);
        let students = self.student.columns(student..self.student.at);
        let is_pair = teachers.len() == 1 && students.len() == 1;
        self.counts.exact += i64::from(is_pair && !space);
        self.counts.space += i64::from(is_pair && space);
        self.counts.chunk_bytes += length_as_count(bytes);
        self.found.push_chunk(teachers, students, space, encloses, self.stop);
    }

    /// Takes the difference that begins here and the chunk behind it; false where it reaches the end.
    fn take_difference(&mut self) -> bool {
        if self.teacher.has_ended() && self.student.has_ended() {
            return false;
        }
        self.counts.teacher_bytes += i64::from(self.teacher.take_space_back());
        self.counts.student_bytes += i64::from(self.student.take_space_back());
        let (teacher, student) = (self.teacher.at, self.student.at);
        while let Some((teacher_end, student_end)) = self.next_place() {
            let before = (self.found.stretches(), *self.counts);
            let ends = self.jump(teacher_end, student_end);
            let stands = (self.teacher.stand(), self.student.stand());
            self.pass_place(true);
            if self.take_chunk() {
                self.push_difference((teacher, student), ends);
                self.pass_place(false);
                return true;
            }
            // The one space was set aside, and the texts agree no more.
            self.found.forget(before.0);
            *self.counts = before.1;
            self.go_back(stands);
            (self.teacher.unpaired, self.student.unpaired) = ends;
        }
        let (teacher_end, student_end) = (self.teacher.last_place(), self.student.last_place());
        let ends = self.jump(teacher_end, student_end);
        self.push_difference((teacher, student), ends);
        self.pass_place(true);
        false
    }

    /// The next tokens with which alignment can resume.
    fn next_place(&mut self) -> Option<(usize, usize)> {
        if self.search.is_none() {
            self.search = Some(Search::new(self.teacher.text(), self.student.text(), self.stop));
        }
        if self.stop.is_set() {
            return None;
        }
        let search = self.search.as_mut().expect("made above");
        search.spend(std::mem::take(&mut self.vain));
        let place = [self.teacher.offset(search.teacher()), self.student.offset(search.student())];
        let [teacher, student] = search.next(place)?;
        Some((self.teacher.token(teacher), self.student.token(student)))
    }

    /// Goes to the tokens with which a difference ends, and returns them.
    fn jump(&mut self, teacher: usize, student: usize) -> (usize, usize) {
        let search = self.search.as_ref().expect("it ends where the search says");
        (self.teacher.jump(teacher, search.teacher()), self.student.jump(student, search.student()))
    }

    /// Where a side stands still, its empty range stands behind the tokens of zero width, whichever of them
    /// are in pairs: so it does not depend on which side is called the teacher.
    fn push_difference(&mut self, starts: (usize, usize), ends: (usize, usize)) {
        let (teacher, student) = (starts.0..ends.0.max(starts.0), starts.1..ends.1.max(starts.1));
        if !(teacher.is_empty() && student.is_empty()) {
            self.found.push_difference(
                self.teacher.columns(teacher),
                self.student.columns(student),
                self.stop,
            );
        }
    }
}

impl Aligner {
    fn teacher_roles_of(&self, id: impl Id) -> &[usize] {
        self.teacher_roles.get(&id.index()).map_or(&[], Vec::as_slice)
    }

    fn student_roles_of(&self, id: impl Id) -> &[usize] {
        self.student_roles.get(&id.index()).map_or(&[], Vec::as_slice)
    }
}

/// Where one side stands in its segment.
struct Cursor<'a, T> {
    vocabulary: &'a Vocabulary,
    stop: &'a Stop<'a>,
    tokens: &'a [T],
    /// The column of the first token in its row.
    column: usize,
    /// The token at hand.
    at: usize,
    /// What is left of its bytes.
    rest: &'a [u8],
    /// Whether its first space was set aside.
    held_space: bool,
    /// Bytes consumed so far, those set aside included.
    position: usize,
    /// How far the run of spaces at hand reaches, up to the next special and through specials.
    spaces_to_special_end: usize,
    all_spaces_end: usize,
    /// The first token of zero width at this place that is behind those in pairs.
    unpaired: usize,
    /// The first token of the text in which is searched.
    searched_from: usize,
    /// The first token that is not in the counts yet.
    counted: usize,
}

/// What a cursor goes back to where there is no chunk.
type Stand<'a> = (usize, &'a [u8], bool, usize);

impl<'a, T: Id> Cursor<'a, T> {
    fn new(vocabulary: &'a Vocabulary, segment: Segment<'a, T>, stop: &'a Stop<'a>) -> Self {
        Self {
            vocabulary,
            stop,
            tokens: segment.tokens,
            column: segment.column,
            at: 0,
            rest: &[],
            held_space: false,
            position: 0,
            spaces_to_special_end: 0,
            all_spaces_end: 0,
            unpaired: 0,
            searched_from: 0,
            counted: 0,
        }
    }

    fn has_ended(&self) -> bool {
        self.at == self.tokens.len()
    }

    fn stand(&self) -> Stand<'a> {
        (self.at, self.rest, self.held_space, self.position)
    }

    fn stand_at(&mut self, stand: Stand<'a>) {
        (self.at, self.rest, self.held_space, self.position) = stand;
    }

    // ---- Reading blocks of plain text ------------------------------------------------------------------

    fn plain(&self) -> Plain<'a, T> {
        Plain { vocabulary: self.vocabulary, tokens: &self.tokens[self.at..], rest: self.rest }
    }

    /// Reads so many whole tokens, of so many bytes without the space that was set aside; what they and
    /// those before them add to the counts.
    fn read_tokens(&mut self, tokens: usize, bytes: usize) -> Counted {
        let before = self.count_to(self.at);
        self.at += tokens;
        self.counted = self.at;
        self.position += bytes;
        self.rest = &[];
        let bytes = length_as_count(bytes) + i64::from(self.held_space);
        before + Counted { tokens: length_as_count(tokens), bytes, opaque: 0 }
    }

    /// What the tokens before this one, from the first that is not counted on, add to the counts.
    fn count_to(&mut self, end: usize) -> Counted {
        let start = std::mem::replace(&mut self.counted, end);
        count_text(self.vocabulary, &self.tokens[start..end], self.stop)
    }

    /// What the tokens that are not counted add to the counts: those of the text in which was searched are
    /// looked up there, not again in the vocabulary.
    fn count_rest(&mut self, text: Option<&Text>) -> Counted {
        let all = self.tokens.len();
        let Some(text) = text.filter(|_| self.counted < all) else { return self.count_to(all) };
        let before = self.count_to(self.counted.max(self.searched_from));
        let rest = text.count(self.counted - self.searched_from..all - self.searched_from);
        let Some([tokens, bytes, opaque]) = rest.map(|counted| counted.map(length_as_count)) else {
            return before + self.count_to(all);
        };
        self.counted = all;
        before + Counted { tokens, bytes, opaque }
    }

    // ---- Searching: the text from the token at hand on, and back to tokens -----------------------------

    fn text(&mut self) -> Text {
        self.searched_from = self.at;
        Text::new(self.vocabulary, &self.tokens[self.at..])
    }

    /// Where in the text the cursor stands; before it are at most specials that found no partner.
    fn offset(&self, text: &Text) -> usize {
        text.start_of(self.at.saturating_sub(self.searched_from))
    }

    /// The token of the row; not one that has been passed.
    fn token(&self, of_text: usize) -> usize {
        if of_text == 0 { self.at } else { self.at.max(self.searched_from + of_text) }
    }

    /// The place at the end of the text: the first token of zero width behind the last other one.
    fn last_place(&self) -> usize {
        let other = |at: &usize| !self.bytes(*at).is_empty() || self.kind(*at) == Some(Kind::Opaque);
        (self.at..self.tokens.len()).rev().find(other).map_or(self.at, |at| at + 1)
    }

    /// Goes to the token with which a difference ends, and returns it. Where the text stands still, the
    /// specials that found no partner before the difference stand behind it as well.
    fn jump(&mut self, at: usize, text: &Text) -> usize {
        let at = if at == self.at { self.unpaired } else { at };
        // A token of unknown bytes counts one, so that no run of spaces reaches over it.
        let length = |at| if self.kind(at) == Some(Kind::Opaque) { 1 } else { self.bytes(at).len() };
        let skipped = self.at..at.max(self.at);
        // Before the text in which is searched there are at most specials, of no width.
        let in_text = |at: usize| at.saturating_sub(self.searched_from);
        let in_text = in_text(skipped.start)..in_text(skipped.end);
        self.position += text.length_of(in_text).unwrap_or_else(|| skipped.map(length).sum());
        self.at = at;
        self.take_up();
        at
    }

    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| self.vocabulary.kind(*token))
    }

    fn bytes(&self, at: usize) -> &'a [u8] {
        self.tokens.get(at).map_or(&[], |token| self.vocabulary.bytes(*token))
    }

    fn columns(&self, range: Range<usize>) -> Range<usize> {
        self.column + range.start..self.column + range.end
    }

    /// Whether exactly one special stands here, as is usual.
    fn is_at_lone_special(&self) -> bool {
        self.kind(self.at) == Some(Kind::Special) && self.kind(self.at + 1) != Some(Kind::Special)
    }

    /// Passes the specials that stand here; returns where each run of one repeated special begins.
    fn pass_specials(&mut self) -> Vec<usize> {
        let mut firsts: Vec<usize> = Vec::new();
        let mut pace = Pace::default();
        while self.kind(self.at) == Some(Kind::Special) && !pace.after(Pace::TOKEN, self.stop) {
            if firsts.is_empty() || self.tokens[self.at - 1].index() != self.tokens[self.at].index() {
                self.stop.push(&mut firsts, self.at);
            }
            self.at += 1;
        }
        firsts
    }

    /// Takes up the token at hand; says whether it has bytes.
    fn take_up(&mut self) -> bool {
        self.rest = self.bytes(self.at);
        self.held_space = false;
        self.at_text()
    }

    /// Passes tokens of zero width, takes up the next token, says whether a special was passed.
    fn pass_zero_width(&mut self) -> bool {
        let mut specials = false;
        while !self.take_up() && self.is_zero_width() {
            specials |= self.kind(self.at) == Some(Kind::Special);
            self.at += 1;
        }
        specials
    }

    /// Whether the token at hand, which has no bytes, is there and known to have none.
    fn is_zero_width(&self) -> bool {
        self.kind(self.at).is_some_and(|kind| kind != Kind::Opaque)
    }

    /// Whether the token at hand has bytes to compare: it is not opaque, and not the end.
    fn at_text(&self) -> bool {
        !self.rest.is_empty()
    }

    fn read(&mut self, length: usize) {
        self.rest = &self.rest[length..];
        self.position += length;
    }

    /// Takes the first space off the token at hand; says whether that was all it had.
    fn set_space_aside(&mut self) -> bool {
        self.read(1);
        self.held_space = true;
        let was_all = self.rest.is_empty();
        if was_all {
            self.at += 1;
            self.unpaired = self.at;
            self.pass_zero_width();
        }
        was_all
    }

    /// Gives the token at hand its space back, which agrees with nothing after all; says whether it had one.
    fn take_space_back(&mut self) -> bool {
        let held = self.held_space;
        if held {
            self.position -= 1;
            self.take_up();
        }
        held
    }

    /// How many spaces stand here before the next special or anything else.
    fn spaces_to_special(&mut self) -> usize {
        if self.position >= self.spaces_to_special_end {
            self.spaces_to_special_end = self.position + self.measure_spaces(false);
        }
        self.spaces_to_special_end - self.position
    }

    /// How many spaces stand here, specials among them passed over.
    fn all_spaces(&mut self) -> usize {
        if self.position >= self.all_spaces_end {
            self.all_spaces_end = self.position + self.measure_spaces(true);
        }
        self.all_spaces_end - self.position
    }

    fn measure_spaces(&self, through_specials: bool) -> usize {
        if !self.at_text() {
            return 0;
        }
        let mut spaces = 0;
        let mut bytes = self.rest;
        let mut at = self.at;
        loop {
            let here = bytes.iter().take_while(|byte| **byte == b' ').count();
            spaces += here;
            at += 1;
            let stops = match self.kind(at) {
                None | Some(Kind::Opaque) => true,
                Some(Kind::Special) => !through_specials,
                Some(_) => false,
            };
            if here < bytes.len() || stops {
                return spaces;
            }
            bytes = self.bytes(at);
        }
    }
}

fn length_as_count(length: usize) -> i64 {
    i64::try_from(length).expect("a length fits i64")
}
