//! From runs of bytes to tokens: where in a run alignment can resume.

use std::cmp::Ordering;

use super::run::Run;
use super::text::Text;

/// The first place in a run, behind `here`, that is a boundary on both sides, and the one behind it that ends a
/// chunk. A place is the first token that stands there on each side.
pub(super) fn resume_in(sides: &[Text; 2], run: Run, place: [usize; 2]) -> Option<[[usize; 2]; 2]> {
    let run = run.clipped(place);
    let here = [0, 1].map(|side| token_at(&sides[side], place[side]));
    let mut shared = shared_boundaries(sides, run, place);
    let (tokens, _) = shared.find(|(tokens, _)| *tokens != here)?;
    let (behind, _) = shared.find(|(_, exact)| *exact)?;
    Some([tokens, behind])
}

/// The token that begins here, or within which this lies.
fn token_at(text: &Text, offset: usize) -> usize {
    let first = text.first_at(offset);
    if text.begins_at(first, offset) { first } else { first - 1 }
}

/// The places in a run where a token begins on both sides, true, or would but for a space before one of them,
/// false; the run's end is one of them.
fn shared_boundaries(
    sides: &[Text; 2],
    run: Run,
    place: [usize; 2],
) -> impl Iterator<Item = ([usize; 2], bool)> {
    let mut at = [0, 1].map(|side| sides[side].first_at(run.at[side]));
    std::iter::from_fn(move || {
        loop {
            let [one, other] = [0, 1].map(|side| boundary(&sides[side], at[side], run.at[side], run.length));
            let (one, other) = (one?, other?);
            let here = at;
            for (side, offset) in [one, other].into_iter().enumerate() {
                if offset == one.min(other) {
                    at[side] = sides[side].first_at(run.at[side] + offset + 1);
                }
            }
            let space =
                |side: usize, offset: usize| space_before(&sides[side], run.at[side] + offset, place[side]);
            match one.cmp(&other) {
                Ordering::Equal => return Some((here, true)),
                Ordering::Greater => {
                    if let Some(token) = space(0, other) {
                        return Some(([token, here[1]], false));
                    }
                }
                Ordering::Less => {
                    if let Some(token) = space(1, one) {
                        return Some(([here[0], token], false));
                    }
                }
            }
        }
    })
}

/// Where in the run this token begins.
fn boundary(text: &Text, token: usize, start: usize, length: usize) -> Option<usize> {
    let offset = *text.starts.get(token)? as usize - start;
    (offset <= length).then_some(offset)
}

/// The first token at the place one space before this, if the space begins a token behind `place`.
fn space_before(text: &Text, offset: usize, place: usize) -> Option<usize> {
    let before = offset.checked_sub(1).filter(|before| *before >= place)?;
    let token = text.first_at(before);
    (text.begins_at(token, before) && text.line.bytes[before] == b' ').then_some(token)
}
