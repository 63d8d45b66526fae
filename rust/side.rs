//! The two sides: which of them is meant, and one of something for each.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::{Index, IndexMut};

/// Which of the two tokenizations is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The large model's tokens.
    Teacher,
    /// The small model's tokens.
    Student,
}

impl Side {
    /// Both, the teacher first.
    pub const BOTH: [Self; 2] = [Self::Teacher, Self::Student];
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        })
    }
}

/// One of something for each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides<T> {
    /// The teacher's.
    pub teacher: T,
    /// The student's.
    pub student: T,
}

impl<T> Sides<T> {
    /// What this makes of each.
    #[inline]
    pub fn map<U>(self, mut each: impl FnMut(T) -> U) -> Sides<U> {
        Sides { teacher: each(self.teacher), student: each(self.student) }
    }

    /// References to both.
    #[inline]
    #[must_use]
    pub fn as_ref(&self) -> Sides<&T> {
        Sides { teacher: &self.teacher, student: &self.student }
    }

    /// References to both, to write to.
    #[inline]
    #[must_use]
    pub fn as_mut(&mut self) -> Sides<&mut T> {
        Sides { teacher: &mut self.teacher, student: &mut self.student }
    }

    /// Each with that of the same side.
    #[inline]
    #[must_use]
    pub fn zip<U>(self, other: Sides<U>) -> Sides<(T, U)> {
        Sides { teacher: (self.teacher, other.teacher), student: (self.student, other.student) }
    }
}

impl<T> Index<Side> for Sides<T> {
    type Output = T;

    #[inline]
    fn index(&self, side: Side) -> &T {
        match side {
            Side::Teacher => &self.teacher,
            Side::Student => &self.student,
        }
    }
}

impl<T> IndexMut<Side> for Sides<T> {
    #[inline]
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Teacher => &mut self.teacher,
            Side::Student => &mut self.student,
        }
    }
}
