//! The rows that people hold, read without a step of Python's for each number or row.
//!
//! Only plain things are read: lists and tuples of integers, arrays of the types that need no copy. Of all else
//! nothing is said here: `None` sends it to `dskd.ragged`, which reads it slowly or says what is wrong with it.

use numpy::{
    Element, IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList, PyTuple};

use crate::batch::{Ids, Values};
use crate::stop::Stop;

// ---- Arrays, as the aligner takes them -------------------------------------------------------------------

/// Ids in one of the types that need no copy: all rows in one array, or a list of an array each.
pub(super) enum IdArrays<'py> {
    I64(PyReadonlyArray1<'py, i64>),
    I32(PyReadonlyArray1<'py, i32>),
    U32(PyReadonlyArray1<'py, u32>),
    ApartI64(Vec<Bound<'py, PyArray1<i64>>>),
    ApartI32(Vec<Bound<'py, PyArray1<i32>>>),
    ApartU32(Vec<Bound<'py, PyArray1<u32>>>),
}

impl<'py> FromPyObject<'_, 'py> for IdArrays<'py> {
    type Error = PyErr;

    fn extract(ids: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(rows) = ids.cast_exact::<PyList>() {
            return match rows.get_item(0)? {
                first if first.cast::<PyArray1<i64>>().is_ok() => Ok(Self::ApartI64(apart(&rows)?)),
                first if first.cast::<PyArray1<i32>>().is_ok() => Ok(Self::ApartI32(apart(&rows)?)),
                _ => Ok(Self::ApartU32(apart(&rows)?)),
            };
        }
        if let Ok(ids) = ids.cast::<PyArray1<i64>>() {
            return Ok(Self::I64(ids.try_readonly()?));
        }
        if let Ok(ids) = ids.cast::<PyArray1<i32>>() {
            return Ok(Self::I32(ids.try_readonly()?));
        }
        Ok(Self::U32(ids.cast::<PyArray1<u32>>()?.try_readonly()?))
    }
}

fn apart<'py, T: Element>(rows: &Bound<'py, PyList>) -> PyResult<Vec<Bound<'py, PyArray1<T>>>> {
    let mut arrays = room(rows.len())?;
    for row in rows.iter() {
        arrays.push(row.cast_into::<PyArray1<T>>().map_err(PyErr::from)?);
    }
    Ok(arrays)
}

impl IdArrays<'_> {
    pub(super) fn slices(&self) -> PyResult<RowSlices<'_>> {
        Ok(match self {
            IdArrays::I64(ids) => RowSlices::I64(Slices::Joined(ids.as_slice()?)),
            IdArrays::I32(ids) => RowSlices::I32(Slices::Joined(ids.as_slice()?)),
            IdArrays::U32(ids) => RowSlices::U32(Slices::Joined(ids.as_slice()?)),
            IdArrays::ApartI64(rows) => RowSlices::I64(Slices::of(rows)?),
            IdArrays::ApartI32(rows) => RowSlices::I32(Slices::of(rows)?),
            IdArrays::ApartU32(rows) => RowSlices::U32(Slices::of(rows)?),
        })
    }
}

/// What these arrays hold.
pub(super) enum RowSlices<'a> {
    I64(Slices<'a, i64>),
    I32(Slices<'a, i32>),
    U32(Slices<'a, u32>),
}

pub(super) enum Slices<'a, T> {
    Joined(&'a [T]),
    Apart(Vec<&'a [T]>),
}

impl RowSlices<'_> {
    pub(super) fn ids(&self) -> Ids<'_> {
        match self {
            Self::I64(slices) => Ids::I64(slices.values()),
            Self::I32(slices) => Ids::I32(slices.values()),
            Self::U32(slices) => Ids::U32(slices.values()),
        }
    }

    /// The offsets of all ids as one row.
    pub(super) fn one_row(&self) -> [i64; 2] {
        [0, i64::try_from(self.ids().count()).expect("a length fits i64")]
    }
}

impl<'a, T: Element> Slices<'a, T> {
    /// Not through `readonly`, which compares an array with all that are borrowed of the same base: rows cut out
    /// of one array, as data sets hold them, would take a time that grows with their square.
    #[expect(unsafe_code, reason = "the array is read without being borrowed")]
    fn of(rows: &'a [Bound<'_, PyArray1<T>>]) -> PyResult<Self> {
        let mut slices = room(rows.len())?;
        for row in rows {
            // SAFETY: nothing of this crate writes to an array that it was given, and the array lives as long as
            // the slice. Other threads of Python's must not write to it meanwhile, as where NumPy itself reads.
            slices.push(unsafe { row.as_slice() }?);
        }
        Ok(Self::Apart(slices))
    }
}

impl<T> Slices<'_, T> {
    fn values(&self) -> Values<'_, T> {
        match self {
            Self::Joined(values) => Values::Joined(values),
            Self::Apart(rows) => Values::Apart(rows),
        }
    }
}

// ---- What people hold ------------------------------------------------------------------------------------

/// Values, in one array or in as many as there are rows, and where rows end.
type Read<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>);

/// Reads rows of ids, or one row, if they are plain: integers in lists or tuples, or arrays of one of the types
/// that need no copy, which are handed back as they are.
#[pyfunction]
pub(super) fn read_ids<'py>(data: &Bound<'py, PyAny>) -> PyResult<Option<Read<'py>>> {
    let py = data.py();
    let read = Items::of(data).and_then(|items| {
        if items.first_is(is_array) {
            return arrays::<i64>(&items, py)
                .or_else(|why| why.if_strange(|| arrays::<i32>(&items, py)))
                .or_else(|why| why.if_strange(|| arrays::<u32>(&items, py)));
        }
        Ok(Joined::of_lists(&items, id)?.into_read(py))
    });
    Unread::as_none(read)
}

/// Reads rows of a mask, or one row, if they are plain: all booleans, or all 0 and 1, in lists, tuples or arrays.
#[pyfunction]
pub(super) fn read_flags<'py>(data: &Bound<'py, PyAny>) -> PyResult<Option<Read<'py>>> {
    let py = data.py();
    let read = Items::of(data).and_then(|items| {
        let joined = if items.first_is(is_array) {
            Joined::of_arrays(&items, Some)
                .or_else(|why| why.if_strange(|| Joined::of_arrays(&items, zero_or_one)))
        } else {
            Joined::of_lists(&items, flag)
                .or_else(|why| why.if_strange(|| Joined::of_lists(&items, |item| zero_or_one(id(item)?))))
        };
        Ok(joined?.into_read(py))
    });
    Unread::as_none(read)
}

/// Why something was not read.
enum Unread {
    /// It is not plain.
    Strange,
    /// An error that nobody else need look for.
    Raised(PyErr),
}

impl From<PyErr> for Unread {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl Unread {
    /// What else there is to try where it was only strange.
    fn if_strange<T>(self, read: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        if let Self::Strange = self { read() } else { Err(self) }
    }

    fn as_none<T>(read: Result<T, Self>) -> PyResult<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(Self::Strange) => Ok(None),
            Err(Self::Raised(error)) => Err(error),
        }
    }
}

/// What is in a list or a tuple, and in nothing of a class that is derived of them.
///
/// A list is copied, so that nobody can change it meanwhile: that costs less than to count references of its items.
struct Items<'py>(Bound<'py, PyTuple>);

impl<'py> Items<'py> {
    fn of(data: &Bound<'py, PyAny>) -> Result<Self, Unread> {
        if let Ok(tuple) = data.cast_exact::<PyTuple>() {
            return Ok(Self(tuple.clone()));
        }
        let list = data.cast_exact::<PyList>().map_err(|_| Unread::Strange)?;
        let tuple = data.py().get_type::<PyTuple>().call1((list,))?;
        Ok(Self(tuple.cast_into().map_err(PyErr::from)?))
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn first_is(&self, is: impl Fn(&Bound<'py, PyAny>) -> bool) -> bool {
        self.0.iter_borrowed().next().is_some_and(|first| is(&first))
    }

    fn iter(&self) -> impl Iterator<Item = Borrowed<'_, 'py, PyAny>> {
        self.0.iter_borrowed()
    }
}

/// How many items a row has, if it is a list or a tuple.
fn count_in(row: &Bound<'_, PyAny>) -> Option<usize> {
    let list = row.cast_exact::<PyList>().map(PyListMethods::len);
    list.or_else(|_| row.cast_exact::<PyTuple>().map(PyTupleMethods::len)).ok()
}

fn is_array(item: &Bound<'_, PyAny>) -> bool {
    item.cast_exact::<PyUntypedArray>().is_ok()
}

/// An integer of Python's, and no boolean, that fits.
fn id(item: &Bound<'_, PyAny>) -> Option<i64> {
    item.cast_exact::<PyInt>().ok()?.extract().ok()
}

fn flag(item: &Bound<'_, PyAny>) -> Option<bool> {
    Some(item.cast_exact::<PyBool>().ok()?.is_true())
}

fn zero_or_one(value: i64) -> Option<bool> {
    matches!(value, 0 | 1).then_some(value == 1)
}

/// The array that this is, if it has one dimension and can be read as it is.
fn plain_array<'a, 'py, T: Element>(
    item: &'a Bound<'py, PyAny>,
) -> Result<&'a Bound<'py, PyArray1<T>>, Unread> {
    let array = item.cast::<PyArray1<T>>().ok().filter(|array| is_array(array));
    array.filter(|array| array.is_c_contiguous() && array.is_aligned()).ok_or(Unread::Strange)
}

/// The arrays as they are; one by itself is that array.
fn arrays<'py, T: Element>(items: &Items<'py>, py: Python<'py>) -> Result<Read<'py>, Unread> {
    let mut offsets = Offsets::of(items.count())?;
    for item in items.iter() {
        offsets.end_row(offsets.end() + plain_array::<T>(&item)?.len());
    }
    let arrays =
        if items.count() == 1 { items.0.get_item(0)? } else { py.get_type::<PyList>().call1((&items.0,))? };
    Ok((arrays, offsets.0.into_pyarray(py)))
}

/// Where rows begin, and where the last one ends.
struct Offsets(Vec<i64>);

impl Offsets {
    /// Of no rows yet, with room for so many.
    fn of(rows: usize) -> Result<Self, Unread> {
        let mut offsets = room(rows + 1)?;
        offsets.push(0);
        Ok(Self(offsets))
    }

    fn end(&self) -> usize {
        self.0.last().map_or(0, |end| usize::try_from(*end).expect("it was a length"))
    }

    fn end_row(&mut self, end: usize) {
        self.0.push(i64::try_from(end).expect("a length fits i64"));
    }
}

fn room<T>(count: usize) -> PyResult<Vec<T>> {
    let stop = Stop::default();
    let room = stop.room(count);
    stop.check()?;
    Ok(room)
}

/// Values of all rows, one row behind the other.
struct Joined<T> {
    values: Vec<T>,
    offsets: Offsets,
}

/// Of so many values it is asked once whether a signal came.
const AT_ONCE: usize = 1 << 16;

impl<T: Element> Joined<T> {
    /// Rows that are lists or tuples, or one that is.
    fn of_lists(items: &Items<'_>, read: impl Fn(&Bound<'_, PyAny>) -> Option<T>) -> Result<Self, Unread> {
        if items.first_is(|first| count_in(first).is_none()) {
            let mut joined = Self::of(1, items.count())?;
            joined.push_row(items, &read)?;
            return Ok(joined);
        }
        let count = items.iter().map(|row| count_in(&row)).sum::<Option<usize>>();
        let mut joined = Self::of(items.count(), count.ok_or(Unread::Strange)?)?;
        for row in items.iter() {
            joined.push_row(&Items::of(&row)?, &read)?;
        }
        Ok(joined)
    }

    /// Rows that are arrays.
    fn of_arrays<U: Element + Copy>(
        items: &Items<'_>,
        read: impl Fn(U) -> Option<T>,
    ) -> Result<Self, Unread> {
        let mut count = 0;
        for row in items.iter() {
            count += plain_array::<U>(&row)?.len();
        }
        let mut joined = Self::of(items.count(), count)?;
        for row in items.iter() {
            let row = plain_array::<U>(&row)?.try_readonly().map_err(PyErr::from)?;
            for value in row.as_slice().map_err(PyErr::from)? {
                joined.values.push(read(*value).ok_or(Unread::Strange)?);
            }
            joined.offsets.end_row(joined.values.len());
        }
        Ok(joined)
    }

    /// No rows yet, and room for so many and for their values.
    fn of(rows: usize, values: usize) -> Result<Self, Unread> {
        Ok(Self { values: room(values)?, offsets: Offsets::of(rows)? })
    }

    fn push_row(
        &mut self,
        items: &Items<'_>,
        read: &impl Fn(&Bound<'_, PyAny>) -> Option<T>,
    ) -> Result<(), Unread> {
        for item in items.iter() {
            if self.values.len().is_multiple_of(AT_ONCE) {
                item.py().check_signals()?;
            }
            self.values.push(read(&item).ok_or(Unread::Strange)?);
        }
        self.offsets.end_row(self.values.len());
        Ok(())
    }

    fn into_read(self, py: Python<'_>) -> Read<'_> {
        (self.values.into_pyarray(py).into_any(), self.offsets.0.into_pyarray(py))
    }
}
