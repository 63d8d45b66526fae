//! Errors are data: what was found, where, and the numbers. The sentence is made in `Display`.

#![forbid(unsafe_code)]

use std::fmt;

use crate::side::Side;

/// Everything that this crate refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It was asked to stop.
    Stopped,
    /// Memory does not suffice.
    OutOfMemory {
        /// What was asked for at last.
        bytes: usize,
    },
    /// The two sides hold different numbers of rows.
    RowCounts {
        /// Rows on the teacher's side.
        teacher: usize,
        /// Rows on the student's side.
        student: usize,
    },
    /// Row offsets fall, start below zero or end past the values.
    Offsets {
        /// The side at fault.
        side: Side,
        /// The first row whose end is wrong.
        row: usize,
        /// Its start.
        start: i64,
        /// Its end.
        end: i64,
        /// How many values there are.
        values: usize,
    },
    /// A mask has another number of values than the ids.
    MaskLength {
        /// The side at fault.
        side: Side,
        /// Values in the mask.
        mask: usize,
        /// Values in the ids.
        ids: usize,
    },
    /// A row is longer than positions (int32) can say.
    RowTooLong {
        /// The side at fault.
        side: Side,
        /// The row.
        row: usize,
        /// Its length.
        length: usize,
    },
    /// A selected id is outside the vocabulary.
    UnknownId {
        /// The side at fault.
        side: Side,
        /// The row.
        row: usize,
        /// The column in the row.
        column: usize,
        /// What stands there.
        id: i64,
        /// The number of slots in the vocabulary.
        size: usize,
    },
    /// An id given to `spans` is outside the vocabulary.
    UnknownToken {
        /// Where it stands.
        position: usize,
        /// What stands there.
        id: i64,
        /// The number of slots in the vocabulary.
        size: usize,
    },
    /// A vocabulary has too many entries.
    TooManyEntries {
        /// How many were given.
        entries: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The tokens of a vocabulary have too many bytes together.
    TooManyBytes {
        /// How many are allowed.
        limit: u32,
    },
    /// A token has too many bytes.
    TokenTooLong {
        /// The token's id.
        id: usize,
        /// Its length in bytes.
        length: usize,
        /// How many bytes are allowed.
        limit: usize,
    },
    /// A decoder makes far more bytes of a token than it is spelled in.
    DecodedTooLong {
        /// The token's id.
        id: usize,
        /// How many bytes the decoder would make.
        length: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A role is given to an id that the vocabulary does not have.
    RoleOfNoToken {
        /// The id.
        id: u32,
        /// The number of slots in the vocabulary.
        size: usize,
    },
    /// The parts of a vocabulary do not fit each other.
    Parts {
        /// What should have been this many ...
        expected: usize,
        /// ... and was this many.
        found: usize,
        /// Of what.
        what: &'static str,
    },
    /// A kind that does not exist.
    UnknownKind {
        /// The token's id.
        id: usize,
        /// The number found.
        kind: u8,
    },
    /// The token is of the byte-fallback kind, and its spelling is not `<0xHH>`.
    NotAByte {
        /// The token's id.
        id: usize,
        /// Its spelling.
        spelling: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "it was asked to stop"),
            Self::OutOfMemory { bytes } => write!(
                f,
                "there is no memory for {bytes} bytes more; align fewer rows in a call, or shorter ones"
            ),
            Self::RowCounts { teacher, student } => write!(
                f,
                "the teacher has {teacher} rows and the student {student}; give both sides of every row \
                 ([] is no rows, [[]] is one empty row)"
            ),
            Self::Offsets { side, row, start, end, values } => write!(
                f,
                "{side} row {row}: it runs from {start} to {end}, and there are {values} values; \
                 offsets start at 0 or later, never fall, and end within the values"
            ),
            Self::MaskLength { side, mask, ids } => write!(
                f,
                "the {side} mask has {mask} values for {ids} ids; a mask has one boolean for each id"
            ),
            Self::RowTooLong { side, row, length } => write!(
                f,
                "{side} row {row} has {length} ids, and a row can have {}; cut it into several rows",
                i32::MAX
            ),
            Self::UnknownId { side, row, column, id, size } => {
                write!(f, "{side} row {row}, position {column}: ")?;
                fmt_unknown_id(f, *id, *size)
            }
            Self::UnknownToken { position, id, size } => write!(
                f,
                "position {position}: id {id} is not in the vocabulary (size {size}); pass size= if the model \
                 has that slot"
            ),
            Self::RoleOfNoToken { id, size } => {
                write!(f, "id {id} has roles and is not in the vocabulary (size {size})")
            }
            Self::TooManyEntries { entries, limit } => {
                write!(f, "the vocabulary has {entries} entries, and {limit} are allowed")
            }
            Self::TooManyBytes { limit } => {
                write!(f, "the tokens have more than the {limit} bytes that are allowed together")
            }
            Self::TokenTooLong { id, length, limit } => {
                write!(f, "token {id} has {length} bytes, and {limit} are allowed")
            }
            Self::DecodedTooLong { id, length, limit } => write!(
                f,
                "the decoder makes {length} bytes of token {id}, and {limit} are allowed: four times its spelling \
                 and a few"
            ),
            Self::Parts { expected, found, what } => {
                write!(f, "a vocabulary's parts disagree: {found} {what} where {expected} are needed")
            }
            Self::UnknownKind { id, kind } => write!(f, "token {id} has kind {kind}; kinds are 0 to 5"),
            Self::NotAByte { id, spelling } => {
                write!(f, "token {id} is a byte-fallback token spelled {spelling:?}; it should read <0xHH>")
            }
        }
    }
}

fn fmt_unknown_id(f: &mut fmt::Formatter<'_>, id: i64, size: usize) -> fmt::Result {
    if id == -100 {
        return f.write_str(
            "-100 is not an id; if these are labels, pass them as teacher_labels= and student_labels=",
        );
    }
    write!(
        f,
        "id {id} is not in the vocabulary (size {size}); mask it, or pass size= if the model has that slot"
    )
}

impl std::error::Error for Error {}
