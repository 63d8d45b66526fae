//! Long work, which Ctrl-C ends.

use std::sync::Mutex;

use pyo3::prelude::*;

use crate::error::Error;
use crate::stop::Stop;

/// Does work while others may run. Now and then it asks Python whether a signal came, whose handler may raise: that
/// ends the work.
pub(super) fn until_signal<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Stop<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let raised = Mutex::new(None);
    let wants_to_stop = || {
        #[expect(clippy::redundant_closure_for_method_calls, reason = "the method is not general enough")]
        let signal = Python::attach(|py| py.check_signals());
        let Err(error) = signal else { return false };
        *raised.lock().expect("nothing panics while it is held") = Some(error);
        true
    };
    let made = py.detach(|| work(&Stop::asking(&wants_to_stop)));
    match raised.into_inner().expect("nothing panics while it is held") {
        Some(error) => Err(error),
        None => Ok(made?),
    }
}
