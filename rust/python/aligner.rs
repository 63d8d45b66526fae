//! The aligner, and what it found.

use std::sync::Arc;

use numpy::{Element, IntoPyArray, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;

use super::Vocabulary;
use super::rows::{IdArrays, RowSlices};
use super::signals::until_signal;
use crate::align;
use crate::batch::{self, Aligned, Rows};
use crate::error::Error;
use crate::found::{Counts, Ranges};
use crate::side::Sides;
use crate::stop::Stop;

/// The two vocabularies, ready to align.
#[pyclass(frozen, module = "dskd._core")]
pub(super) struct Aligner(align::Aligner);

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
        teacher_ids: IdArrays<'_>,
        teacher_offsets: Option<PyReadonlyArray1<'_, i64>>,
        teacher_mask: Option<PyReadonlyArray1<'_, bool>>,
        student_ids: IdArrays<'_>,
        student_offsets: Option<PyReadonlyArray1<'_, i64>>,
        student_mask: Option<PyReadonlyArray1<'_, bool>>,
        num_threads: usize,
    ) -> PyResult<Found> {
        let slices = Sides { teacher: teacher_ids.slices()?, student: student_ids.slices()? };
        let one_row = slices.as_ref().map(RowSlices::one_row);
        let rows = Sides {
            teacher: rows(
                &slices.teacher,
                teacher_offsets.as_ref(),
                &one_row.teacher,
                teacher_mask.as_ref(),
            )?,
            student: rows(
                &slices.student,
                student_offsets.as_ref(),
                &one_row.student,
                student_mask.as_ref(),
            )?,
        };
        let threads = if num_threads == 0 { usize::MAX } else { num_threads };
        let tokens = slices.teacher.ids().count() + slices.student.ids().count();
        let align = |stop: &Stop<'_>| batch::align(stop, &self.0, rows, threads);
        Ok(Found(in_time(py, tokens < SHORT, align)?))
    }
}

/// Fewer tokens take less time than it takes to let others run.
const SHORT: usize = 1 << 8;

fn in_time<T: Send>(
    py: Python<'_>,
    is_short: bool,
    work: impl FnOnce(&Stop<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    if is_short { Ok(work(&Stop::default())?) } else { until_signal(py, work) }
}

fn rows<'a>(
    slices: &'a RowSlices<'_>,
    offsets: Option<&'a PyReadonlyArray1<'_, i64>>,
    one_row: &'a [i64],
    mask: Option<&'a PyReadonlyArray1<'_, bool>>,
) -> PyResult<Rows<'a>> {
    let offsets = offsets.map_or(Ok(one_row), PyReadonlyArray1::as_slice)?;
    Ok(Rows { ids: slices.ids(), offsets, mask: mask.map(PyReadonlyArray1::as_slice).transpose()? })
}

/// What was found in a batch. Columns are made of it when they are asked for; most callers want few.
#[pyclass(frozen, module = "dskd._core")]
pub(super) struct Found(Aligned);

#[pymethods]
impl Found {
    /// Teacher, student, kind, offsets.
    fn pairs(&self, py: Python<'_>) -> PyResult<[Py<PyAny>; 4]> {
        let (pairs, offsets) =
            self.made(py, |found, stop| Ok((found.pairs(stop)?, found.pair_offsets(stop)?)))?;
        Ok([
            column(py, pairs.teacher),
            column(py, pairs.student),
            column(py, pairs.kind),
            column(py, offsets),
        ])
    }

    /// Teacher's start and end, student's start and end, offsets, encloses.
    fn chunks(&self, py: Python<'_>) -> PyResult<Columns> {
        let ((chunks, encloses), offsets) =
            self.made(py, |found, stop| Ok((found.chunks(stop)?, found.chunk_offsets(stop)?)))?;
        let mut columns = ranges(py, chunks, offsets);
        columns.push(column(py, encloses));
        Ok(columns)
    }

    /// Teacher's start and end, student's start and end, offsets.
    fn differences(&self, py: Python<'_>) -> PyResult<Columns> {
        let (differences, offsets) =
            self.made(py, |found, stop| Ok((found.differences(stop)?, found.difference_offsets(stop)?)))?;
        Ok(ranges(py, differences, offsets))
    }

    /// The counts as a matrix of int64, a row for each field, as `COUNTS` names them.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let values = self.made(py, Aligned::count_columns)?;
        let fields = Counts::NAMES.len();
        let rows = values.len() / fields;
        let matrix = values.into_pyarray(py).reshape([fields, rows])?;
        Ok(matrix.readwrite().make_nonwriteable().as_any().clone())
    }
}

impl Found {
    fn made<T: Send>(
        &self,
        py: Python<'_>,
        make: impl FnOnce(&Aligned, &Stop<'_>) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        in_time(py, self.0.size() < SHORT, |stop| make(&self.0, stop))
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
