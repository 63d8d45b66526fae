//! The named cases in `tests/cases/*.json`, worked out by hand from the definition; Python reads the
//! same table.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dskd::align::{Aligner, Counts, PairKind, Ranges};
use dskd::batch::{Ids, Rows, Values};
use dskd::vocabulary::{Kind, Roles, Vocabulary};
use serde_json::Value;

use columns::{Batch, align_batch};

mod columns;

/// One side of a case: a vocabulary of the tokens that its row uses, and the row.
struct Side {
    vocabulary: Arc<Vocabulary>,
    ids: Vec<i64>,
    mask: Option<Vec<bool>>,
}

#[derive(Debug, PartialEq)]
struct Outcome {
    pairs: Vec<(i32, i32, u8)>,
    chunks: Vec<[i32; 4]>,
    encloses: Vec<bool>,
    differences: Vec<[i32; 4]>,
    counts: Counts,
}

#[test]
fn every_named_case_is_found_as_worked_out_by_hand() {
    let cases = cases();
    assert!(!cases.is_empty(), "the table of cases is empty");
    let failing: Vec<String> = cases.iter().filter_map(failure).collect();
    assert!(failing.is_empty(), "{} of {} cases:\n{}", failing.len(), cases.len(), failing.join("\n"));
}

#[test]
fn names_of_cases_are_unique() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| text(&case["name"])).collect();
    assert_eq!(names.len(), cases.len());
}

fn failure(case: &Value) -> Option<String> {
    let (found, expected) = (found(case), expected(case));
    (found != expected).then(|| format!("{}\n  found    {found:?}\n  expected {expected:?}", case["name"]))
}

fn cases() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let tables =
        fs::read_dir(&folder).expect("tests/cases is there").map(|entry| entry.expect("readable").path());
    let mut tables: Vec<_> =
        tables.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    tables.sort();
    let read = |path: PathBuf| -> Vec<Value> {
        let table = fs::read_to_string(&path).expect("readable");
        serde_json::from_str(&table).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    tables.into_iter().flat_map(read).collect()
}

fn found(case: &Value) -> Outcome {
    let (teacher, student) = (side(case, "teacher"), side(case, "student"));
    let aligner = Aligner::new(Arc::clone(&teacher.vocabulary), Arc::clone(&student.vocabulary));
    let offsets = [teacher.offsets(), student.offsets()];
    let batch = align_batch(&aligner, teacher.rows(&offsets[0]), student.rows(&offsets[1]), 1);
    outcome(batch.unwrap_or_else(|error| panic!("{}: {error}", case["name"])))
}

impl Side {
    fn offsets(&self) -> [i64; 2] {
        [0, i64::try_from(self.ids.len()).expect("a case is short")]
    }

    fn rows<'a>(&'a self, offsets: &'a [i64]) -> Rows<'a> {
        Rows { ids: Ids::I64(Values::Joined(&self.ids)), offsets, mask: self.mask.as_deref() }
    }
}

fn outcome(batch: Batch) -> Outcome {
    let pairs = batch.found.pairs;
    Outcome {
        pairs: (0..pairs.kind.len())
            .map(|at| (pairs.teacher[at], pairs.student[at], pairs.kind[at]))
            .collect(),
        chunks: quadruples(&batch.found.chunks),
        encloses: batch.found.encloses,
        differences: quadruples(&batch.found.differences),
        counts: batch.counts[0],
    }
}

fn quadruples(ranges: &Ranges) -> Vec<[i32; 4]> {
    let at = |index: usize| {
        [
            ranges.teacher_start[index],
            ranges.teacher_end[index],
            ranges.student_start[index],
            ranges.student_end[index],
        ]
    };
    (0..ranges.teacher_start.len()).map(at).collect()
}

fn expected(case: &Value) -> Outcome {
    let kinds: Vec<PairKind> = list(&case["pairs"]).iter().map(|pair| pair_kind(text(&pair[2]))).collect();
    let pairs = list(&case["pairs"]).iter().zip(&kinds);
    let of_kind = |kind| count(kinds.iter().filter(|other| **other == kind).count());
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    Outcome {
        pairs: pairs.map(|(pair, kind)| (column(&pair[0]), column(&pair[1]), *kind as u8)).collect(),
        chunks: list(&case["chunks"]).iter().map(quadruple).collect(),
        encloses: list(&case["chunks"]).iter().map(|chunk| chunk.get(4).is_some()).collect(),
        differences: list(&case["differences"]).iter().map(quadruple).collect(),
        counts: Counts {
            teacher_tokens: integer(&case["tokens"][0]),
            student_tokens: integer(&case["tokens"][1]),
            teacher_bytes: integer(&case["bytes"][0]),
            student_bytes: integer(&case["bytes"][1]),
            chunk_bytes: integer(&case["chunk_bytes"]),
            teacher_opaque: number(&case["opaque"][0]),
            student_opaque: number(&case["opaque"][1]),
            exact: of_kind(PairKind::Exact),
            role: of_kind(PairKind::Role),
            space: of_kind(PairKind::Space),
            segment_mismatch: number(&case["segment_mismatch"]),
        },
    }
}

fn pair_kind(name: &str) -> PairKind {
    match name {
        "EXACT" => PairKind::Exact,
        "ROLE" => PairKind::Role,
        "SPACE" => PairKind::Space,
        _ => panic!("{name} is no kind of pair"),
    }
}

/// Tokens that are written alike are one id; `{"id": n}` is an id that the vocabulary need not have.
/// `dummy_prefix` names the sides whose tokenizers put one.
fn side(case: &Value, name: &str) -> Side {
    let (mut tokens, mut kinds, mut roles) = (Vec::new(), Vec::new(), Roles::new());
    let mut written: Vec<&Value> = Vec::new();
    let mut ids = Vec::new();
    for token in list(&case[name]) {
        if let Some(id) = token.get("id") {
            ids.push(integer(id));
            continue;
        }
        let known = written.iter().position(|other| *other == token);
        ids.push(count(known.unwrap_or(written.len())));
        if known.is_none() {
            if let Some(special) = token.get("special") {
                let id = u32::try_from(written.len()).expect("a case is short");
                roles.insert(id, list(special).iter().map(|role| text(role).to_owned()).collect());
            }
            tokens.push(bytes_of(token));
            kinds.push(kind_of(token));
            written.push(token);
        }
    }
    let prefix = case.get("dummy_prefix").is_some_and(|sides| list(sides).iter().any(|side| side == name));
    let vocabulary = Vocabulary::new(&tokens, &kinds, roles, prefix).expect("a case has few tokens");
    let mask = case.get(format!("{name}_mask")).map(|mask| list(mask).iter().map(boolean).collect());
    Side { vocabulary: Arc::new(vocabulary), ids, mask }
}

fn bytes_of(token: &Value) -> Vec<u8> {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).expect("two hexadecimal digits");
    match token.get("hex") {
        Some(hex) => text(hex).split(' ').map(byte).collect(),
        None => {
            token.as_str().unwrap_or(token["user_defined"].as_str().unwrap_or_default()).as_bytes().to_vec()
        }
    }
}

fn kind_of(token: &Value) -> Kind {
    match token {
        Value::String(_) => Kind::Normal,
        _ if token.get("hex").is_some() => Kind::Byte,
        _ if token.get("user_defined").is_some() => Kind::UserDefined,
        _ if token.get("special").is_some() => Kind::Special,
        _ if token.get("opaque").is_some() => Kind::Opaque,
        _ => panic!("{token} is no token"),
    }
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no integer"))
}

fn boolean(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| panic!("{value} is no boolean"))
}

fn column(value: &Value) -> i32 {
    i32::try_from(integer(value)).expect("a case is short")
}

fn quadruple(value: &Value) -> [i32; 4] {
    [column(&value[0]), column(&value[1]), column(&value[2]), column(&value[3])]
}

fn count(number: usize) -> i64 {
    i64::try_from(number).expect("a case is short")
}
