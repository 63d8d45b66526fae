//! Lists as a fuzzer should draw them: any number of things is as likely as any other, where `arbitrary` ends
//! a `Vec` at every second chance.

use std::ops::Deref;

use arbitrary::{Arbitrary, Result, Unstructured};

/// Up to so many.
#[derive(Clone, Debug)]
pub struct Many<T, const MOST: usize>(pub Vec<T>);

impl<'a, T: Arbitrary<'a>, const MOST: usize> Arbitrary<'a> for Many<T, MOST> {
    fn arbitrary(from: &mut Unstructured<'a>) -> Result<Self> {
        let count = from.int_in_range(0..=MOST)?;
        (0..count).map(|_| T::arbitrary(from)).collect::<Result<_>>().map(Self)
    }
}

impl<T, const MOST: usize> Deref for Many<T, MOST> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}
