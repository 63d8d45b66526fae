//! The only file that names pyo3 or numpy. Every function does four things in this order: extract,
//! detach, call, convert.

#![allow(clippy::needless_pass_by_value, reason = "pyo3 hands arguments over by value")]

use std::sync::Arc;

use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::align;
use crate::batch::{self, Batch, Ids, Rows};
use crate::decode::{self, Step};
use crate::error::Error;
use crate::vocabulary::{self, Kind, Roles};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
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
            let (tokens, kinds) = decode_all(&spellings, &kinds, &steps)?;
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
        let id = self.find(token_id)?;
        let known = self.0.kind(id) != Kind::Opaque;
        Ok(known.then(|| PyBytes::new(py, self.0.bytes(id))))
    }

    /// The kind of an id, as a number.
    fn kind(&self, token_id: i64) -> PyResult<u8> {
        Ok(self.0.kind(self.find(token_id)?) as u8)
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

    fn find(&self, id: i64) -> PyResult<u32> {
        let unknown = Error::UnknownToken { position: 0, id, size: self.0.size() };
        Ok(self.0.find(id).ok_or(unknown)?)
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

fn step_of((name, from, to): (String, String, String)) -> PyResult<Step> {
    match name.as_str() {
        "byte_level" => Ok(Step::ByteLevel),
        "byte_fallback" => Ok(Step::ByteFallback),
        "replace" => Ok(Step::Replace { from, to }),
        "word" => Ok(Step::Word { prefix: from }),
        _ => Err(PyValueError::new_err(format!("unknown decoder step {name:?}"))),
    }
}

/// Bytes and kind of every id; a spelling that is missing has none.
fn decode_all(
    spellings: &[Option<String>],
    kinds: &[Kind],
    steps: &[Step],
) -> Result<(Vec<Vec<u8>>, Vec<Kind>), Error> {
    if spellings.len() != kinds.len() {
        return Err(Error::Parts { expected: spellings.len(), found: kinds.len(), what: "kinds" });
    }
    let decoded = spellings.iter().zip(kinds).enumerate().map(|(id, (spelling, kind))| match spelling {
        Some(spelling) if kind.is_text() => decode::decode(id, spelling, *kind, steps),
        _ => Ok((Vec::new(), *kind)),
    });
    Ok(decoded.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
}

/// The two vocabularies, ready to align.
#[pyclass(frozen, module = "dskd._core")]
struct Aligner(align::Aligner);

#[pymethods]
impl Aligner {
    #[new]
    fn new(py: Python<'_>, teacher: &Vocabulary, student: &Vocabulary) -> Self {
        let (teacher, student) = (Arc::clone(&teacher.0), Arc::clone(&student.0));
        Self(py.detach(|| align::Aligner::new(teacher, student)))
    }

    /// Aligns a batch; a dictionary of flat arrays, and `counts`, a row for each of its fields.
    #[expect(clippy::too_many_arguments, reason = "three arrays a side; Python passes them by position")]
    fn align<'py>(
        &self,
        py: Python<'py>,
        teacher_ids: IdArray<'py>,
        teacher_offsets: PyReadonlyArray1<'py, i64>,
        teacher_mask: Option<PyReadonlyArray1<'py, bool>>,
        student_ids: IdArray<'py>,
        student_offsets: PyReadonlyArray1<'py, i64>,
        student_mask: Option<PyReadonlyArray1<'py, bool>>,
        num_threads: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let teacher = rows(&teacher_ids, &teacher_offsets, teacher_mask.as_ref())?;
        let student = rows(&student_ids, &student_offsets, student_mask.as_ref())?;
        let batch = py.detach(|| batch::align_batch(&self.0, teacher, student, num_threads))?;
        to_dict(py, batch)
    }
}

/// Ids in one of the types that need no copy.
#[derive(FromPyObject)]
enum IdArray<'py> {
    I64(PyReadonlyArray1<'py, i64>),
    I32(PyReadonlyArray1<'py, i32>),
    U32(PyReadonlyArray1<'py, u32>),
}

fn rows<'a>(
    ids: &'a IdArray<'_>,
    offsets: &'a PyReadonlyArray1<'_, i64>,
    mask: Option<&'a PyReadonlyArray1<'_, bool>>,
) -> PyResult<Rows<'a>> {
    let ids = match ids {
        IdArray::I64(ids) => Ids::I64(ids.as_slice()?),
        IdArray::I32(ids) => Ids::I32(ids.as_slice()?),
        IdArray::U32(ids) => Ids::U32(ids.as_slice()?),
    };
    Ok(Rows { ids, offsets: offsets.as_slice()?, mask: mask.map(PyReadonlyArray1::as_slice).transpose()? })
}

fn to_dict(py: Python<'_>, batch: Batch) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    let found = batch.found;
    set(&dict, "pair_teacher", found.pairs.teacher)?;
    set(&dict, "pair_student", found.pairs.student)?;
    set(&dict, "pair_kind", found.pairs.kind)?;
    set(&dict, "pair_offsets", batch.pair_offsets)?;
    set_ranges(&dict, "chunk", found.chunks)?;
    set(&dict, "chunk_encloses", found.encloses)?;
    set(&dict, "chunk_offsets", batch.chunk_offsets)?;
    set_ranges(&dict, "difference", found.differences)?;
    set(&dict, "difference_offsets", batch.difference_offsets)?;
    set_counts(&dict, &batch.counts)?;
    Ok(dict)
}

/// A read-only array of the values, without a copy.
fn set<T: Element>(dict: &Bound<'_, PyDict>, name: &str, values: Vec<T>) -> PyResult<()> {
    dict.set_item(name, &*values.into_pyarray(dict.py()).readwrite().make_nonwriteable())
}

fn set_ranges(dict: &Bound<'_, PyDict>, name: &str, ranges: align::Ranges) -> PyResult<()> {
    set(dict, &format!("{name}_teacher_start"), ranges.teacher_start)?;
    set(dict, &format!("{name}_teacher_end"), ranges.teacher_end)?;
    set(dict, &format!("{name}_student_start"), ranges.student_start)?;
    set(dict, &format!("{name}_student_end"), ranges.student_end)
}

/// The counts as a matrix of int64, a row for each field.
fn set_counts(dict: &Bound<'_, PyDict>, counts: &[align::Counts]) -> PyResult<()> {
    let fields: [fn(&align::Counts) -> i64; 11] = [
        |row| row.teacher_tokens,
        |row| row.student_tokens,
        |row| row.teacher_bytes,
        |row| row.student_bytes,
        |row| row.chunk_bytes,
        |row| row.teacher_opaque,
        |row| row.student_opaque,
        |row| row.exact,
        |row| row.role,
        |row| row.space,
        |row| row.segment_mismatch,
    ];
    let values: Vec<i64> = fields.iter().flat_map(|field| counts.iter().map(field)).collect();
    let matrix = values.into_pyarray(dict.py()).reshape([fields.len(), counts.len()])?;
    dict.set_item("counts", &*matrix.readwrite().make_nonwriteable())
}

/// The compiled part of dskd; use the package's own names instead.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::{Aligner, Vocabulary};

    #[pymodule_export]
    const MAX_ENTRIES: usize = crate::vocabulary::MAX_ENTRIES;

    #[pymodule_export]
    const MAX_TOKEN_BYTES: usize = crate::vocabulary::MAX_TOKEN_BYTES;

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name is Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
