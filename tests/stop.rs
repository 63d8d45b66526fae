//! What ends work before its end: the one who is asked, and memory that does not suffice.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dskd::align::Aligner;
use dskd::batch::{self, Aligned, Ids, Rows, Values};
use dskd::error::Error;
use dskd::side::Sides;
use dskd::stop::Stop;
use dskd::vocabulary::{Kind, Roles, Vocabulary};

/// Aligns a row of this many tokens with itself.
fn align_with_itself(tokens: usize, stop: &Stop<'_>) -> Result<Aligned, Error> {
    let vocabulary = Vocabulary::new(&["a"], &[Kind::Normal], Roles::new(), false).expect("it is small");
    let vocabulary = Arc::new(vocabulary);
    let aligner = Aligner::new(Arc::clone(&vocabulary), vocabulary);
    let ids = vec![0_i32; tokens];
    let offsets = [0, i64::try_from(tokens).expect("it is small")];
    let rows = Rows { ids: Ids::I32(Values::Joined(&ids)), offsets: &offsets, mask: None };
    batch::align(stop, &aligner, Sides { teacher: rows, student: rows }, 1)
}

#[test]
fn who_says_stop_is_asked_and_obeyed() {
    let asked = AtomicUsize::new(0);
    let says_stop = || asked.fetch_add(1, Ordering::Relaxed) == 0;
    let stop = Stop::asking(&says_stop);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(align_with_itself(1_000_000, &stop).err(), Some(Error::Stopped));
    assert_eq!(asked.into_inner(), 1);
}

#[test]
fn who_says_nothing_is_asked_seldom() {
    let asked = AtomicUsize::new(0);
    let says_nothing = || asked.fetch_add(1, Ordering::Relaxed) == usize::MAX;
    let stop = Stop::asking(&says_nothing);
    for _ in 0..1_000 {
        assert!(!stop.ask());
    }
    assert!(asked.into_inner() < 100);
}

#[test]
fn only_the_thread_that_can_answer_is_asked() {
    let says_stop = || true;
    let stop = Stop::asking(&says_stop);
    thread::sleep(Duration::from_millis(100));
    let elsewhere = thread::scope(|scope| scope.spawn(|| stop.ask()).join());
    assert!(!elsewhere.expect("it does not panic"));
    assert!(stop.ask());
}

#[test]
fn what_there_is_no_memory_for_is_a_reason_to_stop() {
    let stop = Stop::default();
    let mut bytes: Vec<u8> = Vec::new();
    let most = usize::MAX / 2;
    // What nobody looks at the compiler need not ask for.
    assert!(!stop.reserve(black_box(&mut bytes), most));
    assert!(stop.is_set());
    assert_eq!(stop.check(), Err(Error::OutOfMemory { bytes: most }));
    assert_eq!(align_with_itself(1, &stop).err(), Some(Error::OutOfMemory { bytes: most }));
}
