//! The one space that a tokenizer may put before a text, and the runs of spaces by which it is told.

use super::cursor::Cursor;
use crate::side::{Side, Sides};
use crate::vocabulary::{Id, Kind};

/// What ends a run of spaces besides all that is no space.
#[derive(Clone, Copy)]
enum Within {
    /// The next special.
    Specials = 0,
    /// Nothing: specials are passed over.
    Text = 1,
}

/// The side that holds the one space here, if any: where the opening runs of spaces, read up to the next
/// special, differ by exactly one; not where they are equal once read on through specials.
pub fn holder_of_one_space<T: Id>(sides: &mut Sides<Cursor<'_, T>>) -> Option<Side> {
    if !(sides.teacher.opens_with_space() || sides.student.opens_with_space()) {
        return None;
    }
    let to_special = sides.as_mut().map(|side| side.spaces(Within::Specials));
    if to_special.teacher.abs_diff(to_special.student) != 1 {
        return None;
    }
    let whole = sides.as_mut().map(|side| side.spaces(Within::Text));
    let longer = if to_special.teacher > to_special.student { Side::Teacher } else { Side::Student };
    (whole.teacher != whole.student).then_some(longer)
}

impl<T: Id> Cursor<'_, T> {
    /// Whether the text goes on with a space.
    fn opens_with_space(&self) -> bool {
        self.here.rest.first() == Some(&b' ')
    }

    /// How many spaces stand here before anything else.
    fn spaces(&mut self, within: Within) -> usize {
        if !self.opens_with_space() {
            return 0;
        }
        let (start, end) = (self.here.position, self.reached.0[within as usize]);
        if start < end {
            return end - start;
        }
        let spaces = self.measure_spaces(within);
        self.reached.0[within as usize] = start + spaces;
        spaces
    }

    fn measure_spaces(&self, within: Within) -> usize {
        let mut spaces = 0;
        let mut bytes = self.here.rest;
        let mut at = self.here.at;
        loop {
            let here = bytes.iter().take_while(|byte| **byte == b' ').count();
            spaces += here;
            at += 1;
            let stops = match (self.kind(at), within) {
                (None | Some(Kind::Opaque), _) | (Some(Kind::Special), Within::Specials) => true,
                (Some(_), _) => false,
            };
            if here < bytes.len() || stops {
                return spaces;
            }
            bytes = self.bytes(at);
        }
    }
}
