//! The glue: what is in this file and its folder alone names pyo3 or numpy. Every function does four things in
//! this order: extract, detach, call, convert.
//!
//! * this file: the vocabulary, and what the module has
//! * [`aligner`]: the aligner, and what it found
//! * [`rows`]: the rows that people hold, read without Python
//! * [`signals`]: long work, which Ctrl-C ends

#![allow(clippy::needless_pass_by_value, reason = "pyo3 hands arguments over by value")]

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::decode::{self, Decoded, DecoderStep};
use crate::error::Error;
use crate::vocabulary::{self, Kind, Roles};

mod aligner;
mod rows;
mod signals;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfMemory { .. } => PyMemoryError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// Token bytes, kinds and roles of one tokenizer.
#[pyclass(frozen, module = "dskd._core")]
struct Vocabulary(Arc<vocabulary::Vocabulary>);

#[pymethods]
impl Vocabulary {
    /// From the bytes of every id, one after the other, and their lengths.
    #[staticmethod]
    fn from_parts(
        arena: &[u8],
        lengths: PyReadonlyArray1<'_, u32>,
        kinds: PyReadonlyArray1<'_, u8>,
        roles: Roles,
        dummy_prefix: bool,
    ) -> PyResult<Self> {
        let tokens = cut(arena, lengths.as_slice()?)?;
        build(&tokens, &kinds_of(kinds.as_slice()?)?, roles, dummy_prefix)
    }

    /// From the spelling of every id and the steps of the tokenizer's decoder.
    #[staticmethod]
    fn from_spellings(
        py: Python<'_>,
        spellings: Vec<Option<String>>,
        kinds: PyReadonlyArray1<'_, u8>,
        roles: Roles,
        steps: Vec<(String, String, String)>,
        dummy_prefix: bool,
    ) -> PyResult<Self> {
        let kinds = kinds_of(kinds.as_slice()?)?;
        let steps = steps.into_iter().map(step_of).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| {
            let tokens = decode_all(&spellings, &kinds, &steps)?;
            let kinds: Vec<Kind> = tokens.iter().map(|token| token.kind).collect();
            build(&tokens, &kinds, roles, dummy_prefix)
        })
    }

    /// What `from_parts` takes: arena, lengths, kinds, roles, dummy prefix.
    #[expect(clippy::type_complexity, reason = "the tuple is the signature of from_parts")]
    fn parts<'py>(
        &self,
        py: Python<'py>,
    ) -> (Bound<'py, PyBytes>, Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u8>>, Roles, bool) {
        let ids = self.ids();
        let arena: Vec<u8> = ids.clone().flat_map(|id| self.0.bytes(id).iter().copied()).collect();
        let length = |id| u32::try_from(self.0.bytes(id).len()).expect("MAX_TOKEN_BYTES fits");
        let lengths: Vec<u32> = ids.clone().map(length).collect();
        let kinds: Vec<u8> = ids.map(|id| self.0.kind(id) as u8).collect();
        (
            PyBytes::new(py, &arena),
            lengths.into_pyarray(py),
            kinds.into_pyarray(py),
            self.0.roles().clone(),
            self.0.dummy_prefix(),
        )
    }

    fn __len__(&self) -> usize {
        self.0.size()
    }

    #[getter]
    fn dummy_prefix(&self) -> bool {
        self.0.dummy_prefix()
    }

    /// For every special id, what it is for.
    fn roles(&self) -> Roles {
        self.0.roles().clone()
    }

    /// The bytes of an id; none for an opaque one.
    fn token_bytes<'py>(&self, py: Python<'py>, token_id: i64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.check(token_id)?;
        let known = self.0.kind(token_id) != Kind::Opaque;
        Ok(known.then(|| PyBytes::new(py, self.0.bytes(token_id))))
    }

    /// The kind of an id, as a number.
    fn kind(&self, token_id: i64) -> PyResult<u8> {
        self.check(token_id)?;
        Ok(self.0.kind(token_id) as u8)
    }

    /// For every id the one that stands for its bytes, or -1.
    fn canonical_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i32>> {
        py.detach(|| self.0.canonical_ids()).into_pyarray(py)
    }

    /// Byte intervals, a row for each id.
    fn spans<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let ids = ids.as_slice()?;
        let spans = py.detach(|| self.0.spans(ids))?;
        let flat: Vec<i64> = spans.into_iter().flat_map(<[i64; 2]>::from).collect();
        flat.into_pyarray(py).reshape([ids.len(), 2])
    }
}

impl Vocabulary {
    fn ids(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.0.size()).expect("MAX_ENTRIES fits")
    }

    fn check(&self, id: i64) -> PyResult<()> {
        let unknown = Error::UnknownToken { position: 0, id, size: self.0.size() };
        if self.0.has(id) { Ok(()) } else { Err(unknown.into()) }
    }
}

fn build<T: AsRef<[u8]>>(
    tokens: &[T],
    kinds: &[Kind],
    roles: Roles,
    dummy_prefix: bool,
) -> PyResult<Vocabulary> {
    let vocabulary = vocabulary::Vocabulary::new(tokens, kinds, roles, dummy_prefix)?;
    Ok(Vocabulary(Arc::new(vocabulary)))
}

fn cut<'a>(arena: &'a [u8], lengths: &[u32]) -> PyResult<Vec<&'a [u8]>> {
    let mut rest = arena;
    let mut tokens = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (token, behind) = rest.split_at_checked(*length as usize).ok_or_else(|| {
            let expected = lengths.iter().map(|length| *length as usize).sum();
            Error::Parts { expected, found: arena.len(), what: "bytes" }
        })?;
        tokens.push(token);
        rest = behind;
    }
    if !rest.is_empty() {
        let expected = arena.len() - rest.len();
        return Err(Error::Parts { expected, found: arena.len(), what: "bytes" }.into());
    }
    Ok(tokens)
}

fn kinds_of(numbers: &[u8]) -> PyResult<Vec<Kind>> {
    let kind = |(id, number): (usize, &u8)| {
        Kind::from_number(*number).ok_or_else(|| Error::UnknownKind { id, kind: *number }.into())
    };
    numbers.iter().enumerate().map(kind).collect()
}

fn step_of((name, from, to): (String, String, String)) -> PyResult<DecoderStep> {
    match name.as_str() {
        "byte_level" => Ok(DecoderStep::ByteLevel),
        "byte_fallback" => Ok(DecoderStep::ByteFallback),
        "replace" => Ok(DecoderStep::Replace { from, to }),
        "word" => Ok(DecoderStep::Word { prefix: from }),
        _ => Err(PyValueError::new_err(format!("unknown decoder step {name:?}"))),
    }
}

/// Bytes and kind of every id; a spelling that is missing has none.
fn decode_all(
    spellings: &[Option<String>],
    kinds: &[Kind],
    steps: &[DecoderStep],
) -> Result<Vec<Decoded>, Error> {
    if spellings.len() != kinds.len() {
        return Err(Error::Parts { expected: spellings.len(), found: kinds.len(), what: "kinds" });
    }
    let decoded = spellings.iter().zip(kinds).enumerate().map(|(id, (spelling, kind))| match spelling {
        Some(spelling) if kind.is_text() => decode::decode(id, spelling, *kind, steps),
        _ => Ok(Decoded { bytes: Vec::new(), kind: *kind }),
    });
    decoded.collect()
}

/// The compiled part of dskd; use the package's own names instead.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::Vocabulary;
    #[pymodule_export]
    use super::aligner::{Aligner, Found};
    #[pymodule_export]
    use super::rows::{read_flags, read_ids};

    #[pymodule_export]
    const COUNTS: &[&str] = crate::found::Counts::NAMES;

    #[pymodule_export]
    const MAX_ENTRIES: usize = crate::vocabulary::MAX_ENTRIES;

    #[pymodule_export]
    const MAX_TOKEN_BYTES: usize = crate::vocabulary::MAX_TOKEN_BYTES;

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name is Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
