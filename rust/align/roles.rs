//! Which specials pair: those of one place that share a role, in order, each once.

use std::collections::{HashMap, HashSet};

use crate::side::Sides;
use crate::vocabulary::{Id, Kind, Vocabulary};

/// The roles by which the specials of one vocabulary can pair, as numbers.
#[derive(Debug)]
pub struct Roles {
    /// For every id up to the last special the number of its list: that of all others is 0, the empty one.
    lists_of: Vec<u32>,
    lists: Vec<Vec<usize>>,
}

/// Those that both vocabularies name, less those that never pair.
pub fn shared(vocabularies: Sides<&Vocabulary>) -> Sides<Roles> {
    let named: HashSet<&String> = vocabularies.student.roles().values().flatten().collect();
    let mut numbers = HashMap::new();
    for role in vocabularies.teacher.roles().values().flatten() {
        if !matches!(role.as_str(), "pad" | "unk") && named.contains(role) {
            let next = numbers.len();
            numbers.entry(role.as_str()).or_insert(next);
        }
    }
    vocabularies.map(|vocabulary| Roles::new(vocabulary, &numbers))
}

impl Roles {
    fn new(vocabulary: &Vocabulary, numbers: &HashMap<&str, usize>) -> Self {
        let (mut lists_of, mut lists) = (Vec::new(), vec![Vec::new()]);
        for (id, names) in vocabulary.roles() {
            let list: Vec<_> = names.iter().filter_map(|role| numbers.get(role.as_str()).copied()).collect();
            if vocabulary.kind(*id) == Kind::Special && !list.is_empty() {
                lists_of.resize(id.index(), 0);
                lists_of.push(u32::try_from(lists.len()).expect("MAX_ENTRIES fits"));
                lists.push(list);
            }
        }
        Self { lists_of, lists }
    }

    fn of(&self, id: impl Id) -> &[usize] {
        let list = self.lists_of.get(id.index()).copied().unwrap_or(0);
        &self.lists[list as usize]
    }
}

/// So many specials are searched as they are.
const FEW: usize = 16;

/// Hands over the pairs of the specials with which a place opens, by their numbers: from left to right on the
/// teacher's side, each with the first student special behind the last pair that shares a role.
pub fn pair<T: Id>(roles: &Sides<Roles>, specials: Sides<&[T]>, mut found: impl FnMut(Sides<usize>)) {
    let students = specials.student;
    let last = (students.len() > FEW).then(|| last_of_each(&roles.student, students));
    let mut next = 0;
    for (teacher, id) in firsts(specials.teacher, 0) {
        let own = roles.teacher.of(id);
        let is_ahead = |role: &usize| last.as_ref().is_none_or(|last| last.get(role) >= Some(&next));
        if !own.iter().any(is_ahead) {
            continue;
        }
        let shares = |id: T| roles.student.of(id).iter().any(|role| own.contains(role));
        if let Some((student, _)) = firsts(students, next).find(|(_, id)| shares(*id)) {
            found(Sides { teacher, student });
            next = student + 1;
        }
    }
}

/// From this number on those that can pair: of a run of one repeated special only the first.
fn firsts<T: Id>(specials: &[T], from: usize) -> impl Iterator<Item = (usize, T)> {
    let is_first = |at: usize| at == 0 || specials[at - 1].index() != specials[at].index();
    (from..specials.len()).filter(move |at| is_first(*at)).map(|at| (at, specials[at]))
}

/// For each role the last special that can pair by it: without it, a place of many specials that share no role
/// would be searched once for each of them.
fn last_of_each<T: Id>(roles: &Roles, specials: &[T]) -> HashMap<usize, usize> {
    firsts(specials, 0).flat_map(|(at, id)| roles.of(id).iter().map(move |role| (*role, at))).collect()
}
