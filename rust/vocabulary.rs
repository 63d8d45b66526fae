//! Token bytes in one arena, with the kind and the roles of every id.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::error::Error;

/// Most entries that a vocabulary may have: four times the largest that a model was published with (XLM-V,
/// 901,629), and most stop at a quarter of a million.
pub const MAX_ENTRIES: usize = 1 << 22;
/// Most bytes that one token may have; with [`MAX_ENTRIES`] it bounds the arena.
pub const MAX_TOKEN_BYTES: usize = u16::MAX as usize;

/// What an id is. The order of the first four is the order in which a canonical id is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// An ordinary piece of text.
    Normal = 0,
    /// Text that a user added to the tokenizer.
    UserDefined = 1,
    /// One byte, for what no other token covers.
    Byte = 2,
    /// A piece that the tokenizer defines and never writes.
    Unused = 3,
    /// A marker without text: zero width.
    Special = 4,
    /// Bytes unknown.
    Opaque = 5,
}

impl Kind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Normal, Self::UserDefined, Self::Byte, Self::Unused, Self::Special, Self::Opaque]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }

    /// Whether a token of this kind carries text.
    #[must_use]
    pub fn is_text(self) -> bool {
        self < Self::Special
    }
}

/// A token id in one of the integer types that callers hold.
pub trait Id: Copy + Into<i64> {
    /// Where in a vocabulary it stands; behind every vocabulary if it is less than zero.
    fn index(self) -> usize;
}

impl Id for u32 {
    #[inline]
    fn index(self) -> usize {
        self as usize
    }
}

impl Id for i32 {
    #[inline]
    fn index(self) -> usize {
        // What is less than zero comes to lie above MAX_ENTRIES.
        self.cast_unsigned() as usize
    }
}

impl Id for i64 {
    #[inline]
    fn index(self) -> usize {
        usize::try_from(self.cast_unsigned()).unwrap_or(usize::MAX)
    }
}

/// For every special id, what it is for.
pub type Roles = BTreeMap<u32, BTreeSet<String>>;

/// The bytes, kinds and roles of all ids of one tokenizer.
///
/// Invariant: specials and opaque ids have no bytes, and every entry lies within the arena.
#[derive(Debug)]
pub struct Vocabulary {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    records: Vec<Record>,
    roles: Roles,
    dummy_prefix: bool,
    inner_prefixes: bool,
}

/// Bytes of a [`Record`].
pub const RECORD: usize = 16;

/// The bytes of an id and, in the last place, how many they are: [`NO_RECORD`] if none, or too many.
///
/// One look finds all of a usual token, and so many fit the caches.
pub type Record = [u8; RECORD];

/// Stands for a length where the bytes must be looked up.
pub const NO_RECORD: u8 = u8::MAX;

/// The record of an id that no vocabulary has.
pub const UNKNOWN_RECORD: Record = [NO_RECORD; RECORD];

fn record_of(token: &[u8]) -> Record {
    let mut record = [0; RECORD];
    record[RECORD - 1] = NO_RECORD;
    if (1..RECORD).contains(&token.len()) {
        record[..token.len()].copy_from_slice(token);
        record[RECORD - 1] = u8::try_from(token.len()).expect("RECORD fits");
    }
    record
}

/// Where the bytes of an id lie, and what it is: eight bytes, so that one look finds both.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    length: u16,
    kind: Kind,
}

impl Vocabulary {
    /// A vocabulary from the bytes of each id. What is given for a special or an opaque id is dropped.
    pub fn new<T: AsRef<[u8]>>(
        tokens: &[T],
        kinds: &[Kind],
        roles: Roles,
        dummy_prefix: bool,
    ) -> Result<Self, Error> {
        if tokens.len() != kinds.len() {
            return Err(Error::Parts { expected: tokens.len(), found: kinds.len(), what: "kinds" });
        }
        if tokens.len() > MAX_ENTRIES {
            return Err(Error::TooManyEntries { entries: tokens.len(), limit: MAX_ENTRIES });
        }
        if let Some((id, _)) = roles.last_key_value().filter(|(id, _)| **id as usize >= tokens.len()) {
            return Err(Error::RoleOfNoToken { id: *id, size: tokens.len() });
        }
        let mut arena = Vec::new();
        let mut entries = Vec::with_capacity(tokens.len());
        let mut records = Vec::with_capacity(tokens.len());
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            let token = if kind.is_text() { token.as_ref() } else { &[] };
            let start = u32::try_from(arena.len()).map_err(|_| Error::TooManyBytes { limit: u32::MAX })?;
            let too_long = |_| Error::TokenTooLong { id, length: token.len(), limit: MAX_TOKEN_BYTES };
            entries.push(Entry { start, length: u16::try_from(token.len()).map_err(too_long)?, kind: *kind });
            records.push(record_of(token));
            arena.extend_from_slice(token);
        }
        let inner_prefixes = dummy_prefix && kinds.contains(&Kind::UserDefined);
        Ok(Self { arena, entries, records, roles, dummy_prefix, inner_prefixes })
    }

    /// The number of slots; ids run from 0 to one less.
    #[must_use]
    pub fn size(&self) -> usize {
        self.entries.len()
    }

    /// What this id is; opaque if the vocabulary does not have it.
    #[must_use]
    pub fn kind(&self, id: impl Id) -> Kind {
        self.entry(id).kind
    }

    /// What this id adds to the text; nothing for specials and opaque ids.
    #[must_use]
    #[inline]
    pub fn bytes(&self, id: impl Id) -> &[u8] {
        // One look finds those of a usual token, the entry and the arena are two.
        let record = self.records.get(id.index()).unwrap_or(&UNKNOWN_RECORD);
        if let Some(bytes) = record.get(..usize::from(record[RECORD - 1])) {
            return bytes;
        }
        let entry = self.entry(id);
        &self.arena[entry.start as usize..][..usize::from(entry.length)]
    }

    fn entry(&self, id: impl Id) -> Entry {
        const UNKNOWN: Entry = Entry { start: 0, length: 0, kind: Kind::Opaque };
        self.entries.get(id.index()).copied().unwrap_or(UNKNOWN)
    }

    /// For every id its bytes, if they are few, and their number.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What the special ids are for.
    #[must_use]
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Whether the decoder drops one space at the start of a text.
    #[must_use]
    pub fn dummy_prefix(&self) -> bool {
        self.dummy_prefix
    }

    /// Whether a dummy prefix may stand within a text: behind a user-defined token.
    #[must_use]
    pub fn inner_prefixes(&self) -> bool {
        self.inner_prefixes
    }

    /// Whether a dummy prefix may stand behind this id.
    #[must_use]
    pub fn prefix_may_follow(&self, id: impl Id) -> bool {
        self.inner_prefixes && self.kind(id) == Kind::UserDefined
    }

    /// Whether the vocabulary has this id.
    #[must_use]
    pub fn has(&self, id: impl Id) -> bool {
        id.index() < self.size()
    }

    /// For every id the id that stands for all those with the same bytes: normal before user-defined
    /// before byte fallback before unused, then the lowest; -1 for an id without bytes.
    #[must_use]
    pub fn canonical_ids(&self) -> Vec<i32> {
        let ids = 0..u32::try_from(self.size()).expect("MAX_ENTRIES fits");
        let mut best: HashMap<&[u8], u32> = HashMap::new();
        for id in ids.clone().filter(|id| !self.bytes(*id).is_empty()) {
            let holder = best.entry(self.bytes(id)).or_insert(id);
            if self.kind(id) < self.kind(*holder) {
                *holder = id;
            }
        }
        let number = |id: u32| i32::try_from(id).expect("MAX_ENTRIES fits");
        ids.map(|id| best.get(self.bytes(id)).map_or(-1, |holder| number(*holder))).collect()
    }

    /// The byte interval of each token in the text of all of them, without the dummy prefix that the
    /// decoder drops; (-1, -1) for an opaque token.
    pub fn spans(&self, ids: &[i64]) -> Result<Vec<(i64, i64)>, Error> {
        let mut drops = self.dummy_prefix;
        let mut end = 0_i64;
        let mut spans = Vec::with_capacity(ids.len());
        for (position, id) in ids.iter().enumerate() {
            if !self.has(*id) {
                return Err(Error::UnknownToken { position, id: *id, size: self.size() });
            }
            if self.kind(*id) == Kind::Opaque {
                drops = false;
                spans.push((-1, -1));
                continue;
            }
            let mut bytes = self.bytes(*id);
            if drops && !bytes.is_empty() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                drops = false;
            }
            let start = end;
            end += i64::try_from(bytes.len()).expect("MAX_TOKEN_BYTES fits");
            spans.push((start, end));
        }
        Ok(spans)
    }
}
