//! The only file that names pyo3 or numpy. Every function does four things in this order: extract,
//! detach, call, convert.

#![allow(clippy::needless_pass_by_value, reason = "pyo3 hands arguments over by value")]

use std::panic::resume_unwind;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::align;
use crate::batch::{self, Aligned, Ids, Rows};
use crate::decode::{self, Decoded, DecoderStep};
use crate::error::Error;
use crate::found::{Counts, Ranges};
use crate::stop::Stop;
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

    /// Aligns a batch. A side without offsets is one row. 0 threads are as many as there are processors.
    #[expect(clippy::too_many_arguments, reason = "three arrays a side; Python passes them by position")]
    fn align(
        &self,
        py: Python<'_>,
        teacher_ids: IdArray<'_>,
        teacher_offsets: Option<PyReadonlyArray1<'_, i64>>,
        teacher_mask: Option<PyReadonlyArray1<'_, bool>>,
        student_ids: IdArray<'_>,
        student_offsets: Option<PyReadonlyArray1<'_, i64>>,
        student_mask: Option<PyReadonlyArray1<'_, bool>>,
        num_threads: usize,
    ) -> PyResult<Found> {
        let (teacher_ids, student_ids) = (teacher_ids.as_ids()?, student_ids.as_ids()?);
        let (teacher_row, student_row) = (one_row(teacher_ids), one_row(student_ids));
        let teacher = rows(teacher_ids, teacher_offsets.as_ref(), &teacher_row, teacher_mask.as_ref())?;
        let student = rows(student_ids, student_offsets.as_ref(), &student_row, student_mask.as_ref())?;
        let threads = if num_threads == 0 { usize::MAX } else { num_threads };
        let align = |stop: &Stop| batch::align_until(stop, &self.0, teacher, student, threads);
        let aligned = match teacher_ids.len() + student_ids.len() {
            ..SHORT => align(&Stop::default()),
            SHORT..LONG => py.detach(|| align(&Stop::default())),
            LONG.. => py.detach(|| until_signal(align))?,
        };
        Ok(Found(aligned?))
    }
}

/// Fewer tokens take less time than it takes to let others run.
const SHORT: usize = 1 << 8;

/// So many tokens take long enough for somebody to press Ctrl-C.
const LONG: usize = 1 << 21;
/// How often signals are looked for.
const MOMENT: Duration = Duration::from_millis(20);

/// Does the work on a thread of its own while this one looks for signals; one that raises stops the work.
fn until_signal<T: Send>(work: impl FnOnce(&Stop) -> T + Send) -> PyResult<T> {
    let stop = Stop::default();
    let (at_work, is_at_work) = mpsc::channel::<()>();
    // Taken by whoever works: where there can be no further thread, it is this one.
    let work = Mutex::new(Some((work, at_work)));
    let run = || {
        let (work, _at_work) = work.lock().ok().and_then(|mut work| work.take())?;
        Some(work(&stop))
    };
    thread::scope(|scope| {
        let Ok(worker) = thread::Builder::new().spawn_scoped(scope, run) else {
            return Ok(run().expect("no other thread took the work"));
        };
        let mut signal = Ok(());
        while let Err(RecvTimeoutError::Timeout) = is_at_work.recv_timeout(MOMENT) {
            if signal.is_ok() {
                #[expect(
                    clippy::redundant_closure_for_method_calls,
                    reason = "the method is not general enough"
                )]
                let seen = Python::attach(|py| py.check_signals());
                signal = seen;
                if signal.is_err() {
                    stop.set();
                }
            }
        }
        let made = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        signal.map(|()| made.expect("no other thread took the work"))
    })
}

/// Ids in one of the types that need no copy.
#[derive(FromPyObject)]
enum IdArray<'py> {
    I64(PyReadonlyArray1<'py, i64>),
    I32(PyReadonlyArray1<'py, i32>),
    U32(PyReadonlyArray1<'py, u32>),
}

impl IdArray<'_> {
    fn as_ids(&self) -> PyResult<Ids<'_>> {
        Ok(match self {
            IdArray::I64(ids) => Ids::I64(ids.as_slice()?),
            IdArray::I32(ids) => Ids::I32(ids.as_slice()?),
            IdArray::U32(ids) => Ids::U32(ids.as_slice()?),
        })
    }
}

fn one_row(ids: Ids<'_>) -> [i64; 2] {
    [0, i64::try_from(ids.len()).expect("a length fits i64")]
}

fn rows<'a>(
    ids: Ids<'a>,
    offsets: Option<&'a PyReadonlyArray1<'_, i64>>,
    one_row: &'a [i64],
    mask: Option<&'a PyReadonlyArray1<'_, bool>>,
) -> PyResult<Rows<'a>> {
    let offsets = offsets.map_or(Ok(one_row), PyReadonlyArray1::as_slice)?;
    Ok(Rows { ids, offsets, mask: mask.map(PyReadonlyArray1::as_slice).transpose()? })
}

/// What was found in a batch. Columns are made of it when they are asked for; most callers want few.
#[pyclass(frozen, module = "dskd._core")]
struct Found(Aligned);

#[pymethods]
impl Found {
    /// Teacher, student, kind, offsets.
    fn pairs(&self, py: Python<'_>) -> [Py<PyAny>; 4] {
        let is_short = self.0.size() < SHORT;
        let pairs = if is_short { self.0.pairs() } else { py.detach(|| self.0.pairs()) };
        [
            column(py, pairs.teacher),
            column(py, pairs.student),
            column(py, pairs.kind),
            column(py, self.0.pair_offsets()),
        ]
    }

    /// Teacher's start and end, student's start and end, offsets, encloses.
    fn chunks(&self, py: Python<'_>) -> Columns {
        let (chunks, encloses) = py.detach(|| self.0.chunks());
        let mut columns = ranges(py, chunks, self.0.chunk_offsets());
        columns.push(column(py, encloses));
        columns
    }

    /// Teacher's start and end, student's start and end, offsets.
    fn differences(&self, py: Python<'_>) -> Columns {
        ranges(py, self.0.differences(), self.0.difference_offsets())
    }

    /// The counts as a matrix of int64, a row for each field.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let fields: [fn(&Counts) -> i64; 11] = [
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
        let counts = &self.0.counts;
        let values: Vec<i64> = fields.iter().flat_map(|field| counts.iter().map(field)).collect();
        let matrix = values.into_pyarray(py).reshape([fields.len(), counts.len()])?;
        Ok(matrix.readwrite().make_nonwriteable().as_any().clone())
    }
}

type Columns = Vec<Py<PyAny>>;

fn ranges(py: Python<'_>, ranges: Ranges, offsets: Vec<i64>) -> Columns {
    vec![
        column(py, ranges.teacher_start),
        column(py, ranges.teacher_end),
        column(py, ranges.student_start),
        column(py, ranges.student_end),
        column(py, offsets),
    ]
}

/// A read-only array of the values, without a copy.
fn column<T: Element>(py: Python<'_>, values: Vec<T>) -> Py<PyAny> {
    values.into_pyarray(py).readwrite().make_nonwriteable().as_any().clone().unbind()
}

/// The compiled part of dskd; use the package's own names instead.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::{Aligner, Found, Vocabulary};

    #[pymodule_export]
    const MAX_ENTRIES: usize = crate::vocabulary::MAX_ENTRIES;

    #[pymodule_export]
    const MAX_TOKEN_BYTES: usize = crate::vocabulary::MAX_TOKEN_BYTES;

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name is Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
