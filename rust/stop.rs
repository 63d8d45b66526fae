//! A flag that ends work from outside: Ctrl-C in a batch that takes long.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether to stop. Who works asks now and then, and leaves what is half done to be dropped.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Asks to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
