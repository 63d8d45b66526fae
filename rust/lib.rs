//! Exact alignment of two tokenizations of one text.
//!
//! * [`vocabulary`]: token bytes in one arena, kinds and roles
//! * [`decode`]: vocabulary spelling -> bytes, per decoder step
//! * [`align`]: one pair of sequences -> pairs, chunks and differences
//! * [`blocks`]: the common ends of plain text, fast
//! * [`found`]: what is found, as it is written down and in columns
//! * [`resync`]: what to do where the two texts differ
//! * [`batch`]: many rows, serial or in the pool
//! * [`pool`]: this process's thread pool
//! * [`side`]: the two sides, and one of something for each
//! * [`stop`]: a flag that ends work from outside
//! * [`error`]: errors as data
//!
//! The extension module `dskd._core` (feature `python`) is the only part that knows of Python.

pub mod align;
pub mod batch;
pub mod blocks;
pub mod decode;
pub mod error;
pub mod found;
pub mod pool;
pub mod resync;
pub mod side;
pub mod stop;
pub mod vocabulary;

#[cfg(feature = "python")]
mod python;
