//! What ends work before its end: somebody asks to stop (Ctrl-C), or memory does not suffice.

#![forbid(unsafe_code)]

use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::error::Error;

/// How long somebody who asks to stop is not listened to: whether there is one is not told for nothing.
const MOMENT: Duration = Duration::from_millis(40);

/// Whether to stop. Who works asks now and then, and leaves what is half done to be dropped.
#[derive(Default)]
pub struct Stop<'a> {
    why: OnceLock<Error>,
    caller: Option<Caller<'a>>,
}

/// Who is asked whether to go on, on the one thread on which an answer can be had.
struct Caller<'a> {
    wants_to_stop: &'a (dyn Fn() -> bool + Sync),
    thread: ThreadId,
    began: Instant,
    /// When it was asked last, in nanoseconds.
    asked: AtomicU64,
}

impl<'a> Stop<'a> {
    /// One that this thread asks now and then; others are told what came of it.
    #[must_use]
    pub fn asking(wants_to_stop: &'a (dyn Fn() -> bool + Sync)) -> Self {
        let (thread, began) = (thread::current().id(), Instant::now());
        let caller = Caller { wants_to_stop, thread, began, asked: AtomicU64::new(0) };
        Self { why: OnceLock::new(), caller: Some(caller) }
    }

    /// Asks to stop.
    pub fn set(&self) {
        self.why.get_or_init(|| Error::Stopped);
    }

    /// Whether to stop, as far as is known: where work is short.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.why.get().is_some()
    }

    /// Whether to stop: to be asked after every thousand tokens or so, see [`Pace`].
    pub fn ask(&self) -> bool {
        if !self.is_set() && self.caller.as_ref().is_some_and(Caller::says_stop) {
            self.set();
        }
        self.is_set()
    }

    /// Fails if there was a reason to stop: what was made is good for nothing.
    pub fn check(&self) -> Result<(), Error> {
        self.why.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// Makes room for so many more; false where memory does not suffice, which is a reason to stop.
    pub fn reserve<T>(&self, items: &mut Vec<T>, additional: usize) -> bool {
        let has_room = items.try_reserve(additional).is_ok();
        if !has_room {
            let bytes = (items.len().saturating_add(additional)).saturating_mul(mem::size_of::<T>());
            self.why.get_or_init(|| Error::OutOfMemory { bytes });
        }
        has_room
    }

    /// Adds one, if there is room.
    pub fn push<T>(&self, items: &mut Vec<T>, item: T) {
        if self.reserve(items, 1) {
            items.push(item);
        }
    }

    /// Room for so many, or for none where memory does not suffice, which is a reason to stop.
    #[must_use]
    pub fn room<T>(&self, count: usize) -> Vec<T> {
        let mut items = Vec::new();
        self.reserve(&mut items, count);
        items
    }
}

impl Caller<'_> {
    fn says_stop(&self) -> bool {
        if thread::current().id() != self.thread {
            return false;
        }
        let now = self.began.elapsed();
        if now < MOMENT + Duration::from_nanos(self.asked.load(Ordering::Relaxed)) {
            return false;
        }
        self.asked.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        (self.wants_to_stop)()
    }
}

/// Counts what is worked, so that it is asked neither too often nor too seldom whether to stop.
#[derive(Debug, Default)]
pub struct Pace(usize);

impl Pace {
    /// About as much work as a token is, in bytes that are read.
    pub const TOKEN: usize = 8;
    /// Bytes of work behind which it is asked.
    const STEP: usize = 1 << 16;

    /// Says that work of about so many bytes was done; whether to stop, as far as is known by now.
    #[inline]
    pub fn after(&mut self, bytes: usize, stop: &Stop<'_>) -> bool {
        self.0 += bytes;
        if self.0 < Self::STEP {
            return false;
        }
        self.0 = 0;
        stop.ask()
    }

    /// The same for tokens.
    #[inline]
    pub fn after_tokens(&mut self, tokens: usize, stop: &Stop<'_>) -> bool {
        self.after(tokens.saturating_mul(Self::TOKEN), stop)
    }
}
