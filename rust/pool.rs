//! This process's thread pool; survives fork.
//!
//! A forked child inherits a pool without its threads: whoever waits for it waits for ever. So a pool
//! is remembered with the id of the process that built it, nothing is built before the first parallel
//! call, and a child leaves its parent's pool untouched, not even dropped, and builds its own.

#![forbid(unsafe_code)]

use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::stop::Stop;

struct Owned {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOL: Mutex<Option<Owned>> = Mutex::new(None);

/// A pool of this many threads, or of as many as there are processors if that is fewer; none where it
/// cannot be had or would be one thread: the caller then works alone.
///
/// The lock is held for as long as building a pool takes. It is never waited for without end: a child
/// forked at that moment inherits it locked, and stays serial.
#[must_use]
pub fn of_this_process(threads: usize) -> Option<Arc<ThreadPool>> {
    let threads = threads.min(thread::available_parallelism().map_or(1, usize::from));
    if threads < 2 {
        return None;
    }
    for _ in 0..100 {
        match POOL.try_lock() {
            Ok(mut owned) => return take_or_build(&mut owned, threads),
            Err(TryLockError::Poisoned(_)) => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(100)),
        }
    }
    None
}

fn take_or_build(slot: &mut Option<Owned>, threads: usize) -> Option<Arc<ThreadPool>> {
    let process = process::id();
    match slot.take() {
        Some(owned) if owned.process == process && owned.threads == threads => *slot = Some(owned),
        Some(owned) if owned.process != process => std::mem::forget(owned),
        Some(_) | None => {}
    }
    if slot.is_none() {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().ok()?;
        *slot = Some(Owned { process, threads, pool: Arc::new(pool) });
    }
    slot.as_ref().map(|owned| Arc::clone(&owned.pool))
}

/// How long this thread waits before it asks again whether to stop.
const WAIT: Duration = Duration::from_millis(20);

/// What this work gives, which is done in the pool while this thread asks now and then whether to stop.
pub fn work<T: Send>(pool: &ThreadPool, stop: &Stop<'_>, work: impl FnOnce() -> T + Send) -> T {
    let (at_work, is_at_work) = mpsc::channel::<()>();
    let mut made = None;
    pool.in_place_scope(|scope| {
        scope.spawn(|_| {
            let _at_work = at_work;
            made = Some(work());
        });
        while let Err(RecvTimeoutError::Timeout) = is_at_work.recv_timeout(WAIT) {
            stop.ask();
        }
    });
    made.expect("the scope ends when the work is done")
}
