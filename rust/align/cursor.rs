//! Where one side stands in its segment.

use std::mem;
use std::ops::Range;

use super::{Counted, Segment, count_text, length_as_count};
use crate::blocks::Plain;
use crate::resync::Text;
use crate::stop::{Pace, Stop};
use crate::vocabulary::{Id, Kind, Vocabulary};

/// One side of a segment, and where it stands.
pub struct Cursor<'a, T> {
    vocabulary: &'a Vocabulary,
    stop: &'a Stop<'a>,
    pub(super) tokens: &'a [T],
    /// The column of the first token in its row.
    pub(super) column: usize,
    pub(super) here: Stand<'a>,
    pub(super) reached: Reached,
    /// The first token of zero width at this place that is behind those in pairs.
    pub(super) unpaired: usize,
    /// The first token of the text in which is searched.
    searched_from: usize,
    /// The first token that is not in the counts yet.
    counted: usize,
}

/// Where runs of spaces that were measured end, so that no byte of them is looked at again.
#[derive(Default)]
pub struct Reached(pub(super) [usize; 2]);

/// Where a cursor stands, and what it goes back to where there is no chunk.
#[derive(Clone, Copy, Default)]
pub struct Stand<'a> {
    /// The token at hand.
    pub at: usize,
    /// What is left of its bytes.
    pub rest: &'a [u8],
    /// Whether its first space was set aside.
    pub holds_space: bool,
    /// Bytes consumed so far, those set aside included.
    pub position: usize,
}

impl<'a, T: Id> Cursor<'a, T> {
    /// Before the first token of the segment.
    pub fn new(vocabulary: &'a Vocabulary, segment: Segment<'a, T>, stop: &'a Stop<'a>) -> Self {
        Self {
            vocabulary,
            stop,
            tokens: segment.tokens,
            column: segment.column,
            here: Stand::default(),
            reached: Reached::default(),
            unpaired: 0,
            searched_from: 0,
            counted: 0,
        }
    }

    // ---- The token at hand -----------------------------------------------------------------------------

    /// Whether the token at hand has bytes to compare: it is not opaque, and not the end.
    pub fn at_text(&self) -> bool {
        !self.here.rest.is_empty()
    }

    /// Whether all tokens were passed.
    pub fn has_ended(&self) -> bool {
        self.here.at == self.tokens.len()
    }

    /// Whether the tokenizer may have put a dummy prefix here: behind a user-defined token.
    pub fn may_prefix_here(&self) -> bool {
        let before = self.here.at.checked_sub(1);
        before.is_some_and(|before| self.vocabulary.prefix_may_follow(self.tokens[before]))
    }

    /// The kind of this token; none behind the last.
    pub fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| self.vocabulary.kind(*token))
    }

    /// The bytes of this token; none behind the last.
    pub fn bytes(&self, at: usize) -> &'a [u8] {
        self.tokens.get(at).map_or(&[], |token| self.vocabulary.bytes(*token))
    }

    /// The columns of these tokens.
    pub fn columns(&self, range: Range<usize>) -> Range<usize> {
        self.column + range.start..self.column + range.end
    }

    // ---- Moving ----------------------------------------------------------------------------------------

    /// Arrives at a place; says whether text follows at once.
    pub fn arrive(&mut self) -> bool {
        self.unpaired = self.here.at;
        self.take_up()
    }

    /// Takes up the token at hand; says whether it has bytes.
    fn take_up(&mut self) -> bool {
        self.here.rest = self.bytes(self.here.at);
        self.here.holds_space = false;
        self.at_text()
    }

    /// Passes the specials that stand here, and returns which.
    pub fn pass_specials(&mut self) -> Range<usize> {
        let start = self.here.at;
        let mut pace = Pace::default();
        while self.kind(self.here.at) == Some(Kind::Special) && !pace.after_tokens(1, self.stop) {
            self.here.at += 1;
        }
        start..self.here.at
    }

    /// Passes tokens of zero width, takes up the next token, says whether a special was passed.
    pub fn pass_zero_width(&mut self) -> bool {
        let mut specials = false;
        let mut pace = Pace::default();
        while !self.take_up() && !pace.after_tokens(1, self.stop) {
            match self.kind(self.here.at) {
                None | Some(Kind::Opaque) => break,
                Some(kind) => specials |= kind == Kind::Special,
            }
            self.here.at += 1;
        }
        specials
    }

    /// Reads so many bytes of the token at hand; says whether that was all it had.
    pub fn read(&mut self, length: usize) -> bool {
        self.here.rest = &self.here.rest[length..];
        self.here.position += length;
        self.here.rest.is_empty()
    }

    /// Goes on behind the token at hand to the next that has bytes; says whether there are others between.
    pub fn go_on(&mut self) -> bool {
        let next = self.here.at + 1;
        self.here.at = next;
        self.pass_zero_width();
        self.here.at > next
    }

    /// Goes back to where it stood; returns how many tokens it had passed since.
    pub fn go_back(&mut self, stand: Stand<'a>) -> usize {
        mem::replace(&mut self.here, stand).at - stand.at
    }

    // ---- The one space ---------------------------------------------------------------------------------

    /// Takes the first space off the token at hand; says whether that was all it had.
    pub fn set_space_aside(&mut self) -> bool {
        let was_all = self.read(1);
        self.here.holds_space = true;
        if was_all {
            self.here.at += 1;
            self.unpaired = self.here.at;
        }
        was_all
    }

    /// Gives the token at hand its space back, which agrees with nothing after all; says whether it had one.
    pub fn take_space_back(&mut self) -> bool {
        let held = self.here.holds_space;
        if held {
            self.here.position -= 1;
            self.take_up();
        }
        held
    }

    // ---- Blocks of plain text, and counts --------------------------------------------------------------

    /// The text from the token at hand on.
    pub fn plain(&self) -> Plain<'a, T> {
        Plain { vocabulary: self.vocabulary, tokens: &self.tokens[self.here.at..], rest: self.here.rest }
    }

    /// Reads so many whole tokens, of so many bytes without the space that was set aside; what they and
    /// those before them add to the counts.
    pub fn read_tokens(&mut self, tokens: usize, bytes: usize) -> Counted {
        let before = self.count_to(self.here.at);
        let space = i64::from(self.here.holds_space);
        self.here.at += tokens;
        self.here.position += bytes;
        self.here.rest = &[];
        self.counted = self.here.at;
        before + Counted { tokens: length_as_count(tokens), bytes: length_as_count(bytes) + space, opaque: 0 }
    }

    /// What the tokens before this one, from the first that is not counted on, add to the counts.
    fn count_to(&mut self, end: usize) -> Counted {
        let start = mem::replace(&mut self.counted, end);
        count_text(self.vocabulary, &self.tokens[start..end], self.stop)
    }

    /// What the tokens that are not counted add to the counts: those of the text in which was searched are
    /// looked up there, not again in the vocabulary.
    pub fn count_rest(&mut self, text: Option<&Text>) -> Counted {
        let all = self.tokens.len();
        let Some(text) = text.filter(|_| self.counted < all) else { return self.count_to(all) };
        let before = self.count_to(self.counted.max(self.searched_from));
        let rest = text.count(self.counted - self.searched_from..all - self.searched_from);
        let rest = rest.unwrap_or_else(|| self.count_to(all));
        self.counted = all;
        before + rest
    }

    // ---- Searching: the text from the token at hand on, and back to tokens -----------------------------

    /// The text in which is searched.
    pub fn text(&mut self) -> Text {
        self.searched_from = self.here.at;
        Text::new(self.vocabulary, &self.tokens[self.here.at..], self.stop)
    }

    /// Where in the text the cursor stands; before it are at most specials that found no partner.
    pub fn offset(&self, text: &Text) -> usize {
        text.start_of(self.here.at.saturating_sub(self.searched_from))
    }

    /// The token of the row; not one that has been passed.
    pub fn token(&self, of_text: usize) -> usize {
        if of_text == 0 { self.here.at } else { self.here.at.max(self.searched_from + of_text) }
    }

    /// The place at the end of the text: the first token of zero width behind the last other one.
    pub fn last_place(&self) -> usize {
        let other = |at: &usize| !self.bytes(*at).is_empty() || self.kind(*at) == Some(Kind::Opaque);
        (self.here.at..self.tokens.len()).rev().find(other).map_or(self.here.at, |at| at + 1)
    }

    /// Goes to the token with which a difference ends, and returns it. Where the text stands still, the
    /// specials that found no partner before the difference stand behind it as well.
    pub fn jump(&mut self, at: usize, text: &Text) -> usize {
        let at = if at == self.here.at { self.unpaired } else { at };
        // A token of unknown bytes counts one, so that no run of spaces reaches over it.
        let length = |at| if self.kind(at) == Some(Kind::Opaque) { 1 } else { self.bytes(at).len() };
        let skipped = self.here.at..at.max(self.here.at);
        // Before the text in which is searched there are at most specials, of no width.
        let in_text = |at: usize| at.saturating_sub(self.searched_from);
        let in_text = in_text(skipped.start)..in_text(skipped.end);
        self.here.position += text.length_of(in_text).unwrap_or_else(|| skipped.map(length).sum());
        self.here.at = at;
        self.take_up();
        at
    }
}
