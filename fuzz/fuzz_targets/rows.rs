//! Arbitrary vocabularies, ids, offsets and masks: never a panic; what is found keeps all promises, and what
//! is refused is wrong.

#![no_main]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arbitrary::Arbitrary;
use columns::{Batch, align_batch};
use dskd::align::Aligner;
use dskd::batch::{Ids, Rows, Values};
use dskd::vocabulary::{Kind, Roles, Vocabulary};
use expected::{Segments, row_of_segments};
use libfuzzer_sys::fuzz_target;
use many::Many;
use promises::{Row, Side, Token, align_rows, row_of};

#[path = "../../tests/columns/mod.rs"]
mod columns;
mod expected;
mod many;
#[path = "../../tests/promises/mod.rs"]
mod promises;

const ROLES: [&str; 6] = ["bos", "eos", "pad", "unk", "<a>", "<b>"];

#[derive(Arbitrary, Debug)]
struct Input {
    teacher: Given,
    student: Option<Given>, // none: the teacher's vocabulary and rows on both sides
}

#[derive(Arbitrary, Clone, Debug)]
struct Given {
    tokens: Many<(Many<u8, 20>, u8, u8), 12>,
    dummy_prefix: bool,
    ids: GivenIds,
    offsets: Many<i64, 6>,
    lengths: Option<Many<u8, 6>>, // instead of offsets
    mask: Option<Many<bool, 100>>,
}

#[derive(Arbitrary, Clone, Debug)]
enum GivenIds {
    Small(Many<u8, 100>), // all of them known
    I32(Many<i32, 100>),
    U32(Many<u32, 100>),
    I64(Many<i64, 100>),
}

/// One side as the core takes it, and the same in tokens.
struct Held {
    vocabulary: Arc<Vocabulary>,
    tokens: Vec<Token>,
    ids: GivenIds,
    offsets: Vec<i64>,
    mask: Option<Vec<bool>>,
}

impl Held {
    fn of(given: &Given) -> Self {
        let mut given = given.clone();
        given.tokens.0.push((Many(b" ".to_vec()), 0, 0));
        let kind = |number: u8| Kind::from_number(number % 6).expect("six kinds");
        let kinds: Vec<Kind> = given.tokens.iter().map(|(_, number, _)| kind(*number)).collect();
        let mut roles = Roles::new();
        let mut tokens = Vec::new();
        for (id, (bytes, number, bits)) in given.tokens.iter().enumerate() {
            let named: BTreeSet<&str> =
                (0..6).filter(|bit| bits >> bit & 1 == 1).map(|bit| ROLES[bit]).collect();
            if !named.is_empty() {
                // Text may be given roles too; it pairs by none.
                let owned = named.iter().map(|role| (*role).to_owned()).collect();
                roles.insert(u32::try_from(id).expect("few"), owned);
            }
            tokens.push(match kind(*number) {
                Kind::Special => Token::Special(named),
                Kind::Opaque => Token::Opaque,
                Kind::UserDefined => Token::UserDefined(bytes.0.clone()),
                _ => Token::Text(bytes.0.clone()),
            });
        }
        let bytes: Vec<&[u8]> = given.tokens.iter().map(|(bytes, ..)| bytes.as_slice()).collect();
        let vocabulary =
            Vocabulary::new(&bytes, &kinds, roles, given.dummy_prefix).expect("a small vocabulary");
        let ids = match given.ids {
            GivenIds::Small(ids) => {
                GivenIds::I64(Many(ids.iter().map(|id| (usize::from(*id) % tokens.len()) as i64).collect()))
            }
            ids => ids,
        };
        let mut held = Self {
            vocabulary: Arc::new(vocabulary),
            tokens,
            ids,
            offsets: given.offsets.0,
            mask: given.mask.map(|mask| mask.0),
        };
        if let Some(lengths) = given.lengths {
            held.offsets = offsets_of(&lengths, held.values().len());
        }
        if let Some(mask) = held.mask.as_mut().filter(|mask| mask.len() % 4 > 0) {
            // Most masks are of the right length.
            mask.resize(held.ids.len(), true);
        }
        held
    }

    fn rows(&self) -> Rows<'_> {
        let ids = match &self.ids {
            GivenIds::Small(_) => unreachable!("they became others"),
            GivenIds::I32(ids) => Ids::I32(Values::Joined(ids)),
            GivenIds::U32(ids) => Ids::U32(Values::Joined(ids)),
            GivenIds::I64(ids) => Ids::I64(Values::Joined(ids)),
        };
        Rows { ids, offsets: &self.offsets, mask: self.mask.as_deref() }
    }

    fn values(&self) -> Vec<i64> {
        match &self.ids {
            GivenIds::Small(_) => unreachable!("they became others"),
            GivenIds::I32(ids) => ids.iter().map(|id| i64::from(*id)).collect(),
            GivenIds::U32(ids) => ids.iter().map(|id| i64::from(*id)).collect(),
            GivenIds::I64(ids) => ids.0.clone(),
        }
    }

    /// Whether the core should take it: the definition, not the check.
    fn is_valid(&self) -> bool {
        let values = self.values();
        let in_order = self.offsets.windows(2).all(|ends| {
            0 <= ends[0] && ends[0] <= ends[1] && ends[1] <= i64::try_from(values.len()).expect("few")
        });
        in_order
            && self.mask.as_ref().is_none_or(|mask| mask.len() == values.len())
            && self.offsets.windows(2).all(|ends| {
                (ends[0] as usize..ends[1] as usize).all(|at| {
                    self.mask.as_ref().is_some_and(|mask| !mask[at])
                        || usize::try_from(values[at]).is_ok_and(|id| id < self.tokens.len())
                })
            })
    }

    fn segments<'a>(&self, row: usize, values: &'a [i64]) -> Vec<(usize, &'a [i64])> {
        let (start, end) = (self.offsets[row] as usize, self.offsets[row + 1] as usize);
        let Some(mask) = &self.mask else { return vec![(0, &values[start..end])] };
        let mut segments = Vec::new();
        let mut at = start;
        while at < end {
            let length = (at..end).take_while(|other| mask[*other] == mask[at]).count();
            if mask[at] {
                segments.push((at - start, &values[at..at + length]));
            }
            at += length;
        }
        segments
    }

    fn side(&self, ids: &[i64]) -> Side {
        Side { vocabulary: self.tokens.clone(), ids: ids.to_vec() }
    }
}

impl GivenIds {
    fn len(&self) -> usize {
        match self {
            Self::Small(ids) => ids.len(),
            Self::I32(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
            Self::I64(ids) => ids.len(),
        }
    }
}

/// Offsets that are in order and stay within the values.
fn offsets_of(lengths: &[u8], values: usize) -> Vec<i64> {
    let mut end = 0;
    let mut offsets = vec![0];
    for length in lengths {
        end = values.min(end + usize::from(*length));
        offsets.push(end as i64);
    }
    offsets
}

fuzz_target!(|input: Input| {
    let teacher = Held::of(&input.teacher);
    let student = Held::of(input.student.as_ref().unwrap_or(&input.teacher));
    let aligner = Aligner::new(Arc::clone(&teacher.vocabulary), Arc::clone(&student.vocabulary));
    let found = align_batch(&aligner, teacher.rows(), student.rows(), 1);
    assert_eq!(found, align_batch(&aligner, teacher.rows(), student.rows(), 2));
    let rows = teacher.offsets.len().saturating_sub(1);
    let valid = rows == student.offsets.len().saturating_sub(1) && teacher.is_valid() && student.is_valid();
    assert_eq!(found.is_ok(), valid, "{found:?}");
    if let Ok(batch) = found {
        check(&aligner, &teacher, &student, &batch, input.student.is_none());
    }
});

/// Every row is what its segments are alone, and every segment keeps the promises.
fn check(aligner: &Aligner, teacher: &Held, student: &Held, batch: &Batch, same: bool) {
    let (teachers, students) = (teacher.values(), student.values());
    let swapped_aligner = Aligner::new(Arc::clone(&student.vocabulary), Arc::clone(&teacher.vocabulary));
    let mut seen: HashMap<(Vec<i64>, Vec<i64>), ()> = HashMap::new();
    for row in 0..batch.counts.len() {
        let segments =
            Segments { teacher: teacher.segments(row, &teachers), student: student.segments(row, &students) };
        let expected = row_of_segments(aligner, &segments, |teacher_ids, student_ids, found| {
            if seen.insert((teacher_ids.to_vec(), student_ids.to_vec()), ()).is_some() {
                return;
            }
            let alone = Row { teacher: teacher.side(teacher_ids), student: student.side(student_ids) };
            promises::all_are_kept(&alone, found);
            let swapped = align_rows(&swapped_aligner, &[student_ids.to_vec()], &[teacher_ids.to_vec()], 1);
            promises::swapping_the_sides_swaps_chunks_differences_and_text_pairs(
                found,
                &swapped.expect("known ids"),
            );
            let opaque = alone.teacher.columns().any(|at| *alone.teacher.token(at) == Token::Opaque);
            if same && !opaque {
                promises::aligned_with_itself_it_is_the_identity(&alone.teacher, found);
            }
        });
        assert_eq!(row_of(batch, row), expected, "row {row}");
    }
}
