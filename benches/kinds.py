"""Repetitive texts of the kinds that people have, each in two versions, and what was changed between them.

Lists, logs, records, statements, tables, songs and code are written line by line from few words, so that a
text says much the same many times, and a text has from 10 to 300 lines, short ones as often as long ones. A
version differs in a value a line, in lines that are gone, or in how every character is written. What was
changed is kept as `Version.changes`, so the correspondence is known without comparing anything.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import normalisers
import oracle
from oracle import Change

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

FEWEST_LINES, MOST_LINES = 10, 300

Written = list["str | tuple[str, str]"]
"""A text as it is written down: what both versions say, and values as (the one's, the other's)."""


@dataclass(frozen=True, slots=True)
class Version:
    """A text and what becomes of it.

    Attributes:
        text: the one version.
        changes: what makes the other of it.
        values: whether each change puts a value in place of another, inside of which nothing corresponds for
            certain; where not, all that is not in a change is in its place and nothing in a change is.
    """

    text: str
    changes: list[Change]
    values: bool = True


def laid(written: Written) -> Version:
    """The two versions of what was written."""
    changes: list[Change] = []
    text: list[str] = []
    length = 0
    for part in written:
        old, new = (part, part) if isinstance(part, str) else part
        if old != new:
            changes.append(Change(length, length + len(old), new))
        text.append(old)
        length += len(old)
    return Version("".join(text), changes)


# ---- Words -----------------------------------------------------------------------------------------------

NAMES = ("Bob", "Ann", "Dan", "Eve", "Joe", "Kim", "Maria", "Peter", "Liam", "Olivia", "Noah", "Zoë")
THINGS = ("invoice", "contract", "delivery", "ticket", "report", "meeting", "budget", "order")
DEEDS = ("call", "write to", "remind", "ask", "answer", "pay", "visit")
VERBS = ("told", "asked", "wrote to", "called")
STATES = ("open", "late", "new", "lost", "paid", "unclear")
MODULES = ("db.pool", "http.server", "auth.session", "cache", "queue.worker", "scheduler")
LEVELS = ("INFO", "WARNING", "ERROR", "DEBUG")
VERSES = (
    "Row, row, row your boat",
    "Gently down the stream",
    "Merrily, merrily, merrily, merrily",
    "Life is but a dream",
    "The wheels on the bus go round and round",
    "All through the town",
    "Old MacDonald had a farm, E-I-E-I-O",
    "And on that farm he had a {}",
    "With a {} here and a {} there",
    "Here a {}, there a {}, everywhere a {}",
    "One {} jumping on the bed",
    "She fell off and bumped her head",
    "Mama called the {} and the {} said",
    "No more {} jumping on the bed",
)
ANIMALS = ("cow", "duck", "pig", "sheep", "horse", "monkey", "doctor", "hen")
BRACKETS = ("- [ ] ", "* ", "- ", "[ ] ", "")


def line_count(rng: random.Random) -> int:
    """From 10 to 300, as often from 10 to 20 as from 100 to 200."""
    return round(math.exp(rng.uniform(math.log(FEWEST_LINES), math.log(MOST_LINES))))


def some(words: Sequence[str], rng: random.Random, least: int = 1) -> list[str]:
    """Few of the words or all: how many there are says how much a text repeats itself."""
    return rng.sample(words, max(least, min(len(words), rng.choice((1, 2, 4, 12)))))


def other(values: Sequence[str], value: str, rng: random.Random) -> str:
    """One of the values, but not this one."""
    return rng.choice([one for one in values if one != value])


def number(rng: random.Random, digits: int = 6) -> str:
    """A number of so many digits."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


# ---- Values changed, line by line ------------------------------------------------------------------------


def list_with_names(rng: random.Random) -> Written:
    """A to-do list; another name in a tenth of the lines, or in a third.

    There are four names and more: of two, exchanged in every line, a text with a line left out says as much.
    """
    return _to_do(rng, rng.choice((0.1, 0.33)), 4)


def list_with_all_names(rng: random.Random) -> Written:
    """A to-do list; another name in every line: a text with a line left out often says as much."""
    return _to_do(rng, 1.0, 2)


def _to_do(rng: random.Random, share: float, least: int) -> Written:
    bullet, state = rng.choice(BRACKETS), rng.choice(STATES)
    deeds, things, names = some(DEEDS, rng), some(THINGS, rng), some(NAMES, rng, least)
    written: Written = []
    for _ in range(line_count(rng)):
        name = rng.choice(names)
        new = other(names, name, rng) if rng.random() < share else name
        written += [
            f"{bullet}{rng.choice(deeds)} ",
            (name, new),
            f" about the {state} {rng.choice(things)}\n",
        ]
    return written


def list_with_numbers(rng: random.Random) -> Written:
    """A list of things; another number in each line."""
    bullet, states, things = rng.choice(BRACKETS), some(STATES, rng), some(THINGS, rng)
    written: Written = []
    for _ in range(line_count(rng)):
        line = f"{bullet}{rng.choice(states)} {rng.choice(things)} number "
        written += [line, (number(rng, 4), number(rng, 4)), " for the weekly review\n"]
    return written


def lines_joined(rng: random.Random) -> Written:
    """A list or a song whose lines are joined by line ends in the one version and by spaces in the other."""
    deeds, names, things = some(DEEDS, rng), some(NAMES, rng), some(THINGS, rng)
    bullet = rng.choice(BRACKETS[:-1])
    lines = [
        f"{bullet}{rng.choice(deeds)} {rng.choice(names)} about the open {rng.choice(things)}"
        for _ in range(line_count(rng))
    ]
    if rng.random() < 0.5:  # noqa: PLR2004 - one or the other
        lines = _song(rng)
    return joined(lines, "\n", " ")


def joined(lines: Sequence[str], old: str, new: str) -> Written:
    """The lines, joined by `old` in the one version and by `new` in the other."""
    written: Written = [lines[0]]
    for line in lines[1:]:
        written += [(old, new), line]
    return written


def _messages(rng: random.Random) -> list[str]:
    """What few sources have to say: a few sentences, again and again."""
    pool = [f"{deed} {thing}: {rng.choice(STATES)}" for deed in DEEDS for thing in THINGS]
    return some(pool, rng)


def _clock(seconds: int) -> str:
    hours, rest = divmod(seconds % 86400, 3600)
    return f"{hours:02}:{rest // 60:02}:{rest % 60:02}"


def log_with_times(rng: random.Random) -> Written:
    """A log; each line at another time of the day, or on another day, too."""
    messages, levels, modules = _messages(rng), some(LEVELS, rng), some(MODULES, rng)
    seconds, shift, day = rng.randrange(40_000), rng.randrange(1, 40_000), rng.choice(("29", "30"))
    written: Written = []
    for _ in range(line_count(rng)):
        seconds += rng.randrange(1, 90)
        times = (f"29T{_clock(seconds)}", f"{day}T{_clock(seconds + shift)}")
        written += ["2026-11-", times]
        written += [f" {rng.choice(levels):7} [{rng.choice(modules)}] {rng.choice(messages)}\n"]
    return written


def log_with_ids(rng: random.Random) -> Written:
    """A log; each line with another id of the request, some at another level."""
    messages, modules, seconds = _messages(rng), some(MODULES, rng), rng.randrange(80_000)
    written: Written = []
    for _ in range(line_count(rng)):
        seconds += rng.randrange(1, 90)
        level = rng.choice(LEVELS)
        changed = other(LEVELS, level, rng) if rng.random() < 0.2 else level  # noqa: PLR2004
        ids = (f"{rng.getrandbits(32):08x}", f"{rng.getrandbits(32):08x}")
        written += [f"{_clock(seconds)} ", (level, changed), f" {rng.choice(modules)} request=", ids]
        written += [f" {rng.choice(messages)}\n"]
    return written


def records_with_values(rng: random.Random) -> Written:
    """JSON, a record a line; another id and another amount in each."""
    names, states, things = some(NAMES, rng), some(STATES, rng), some(THINGS, rng)
    written: Written = []
    for _ in range(line_count(rng)):
        ids, amounts = (number(rng), number(rng)), (number(rng, 3), number(rng, 3))
        written += ['{"id": ', ids, f', "name": "{rng.choice(names)}", "state": "{rng.choice(states)}", ']
        written += ['"amount": ', amounts, f', "tags": ["{rng.choice(things)}", "{rng.choice(things)}"]}}\n']
    return written


def records_indented(rng: random.Random) -> Written:
    """One JSON document, indented and compact."""
    names, deeds, things = some(NAMES, rng), some(DEEDS, rng), some(THINGS, rng)
    records = [
        {"id": int(number(rng)), "name": rng.choice(names), "tags": [rng.choice(things), rng.choice(STATES)]}
        | {"note": f"{rng.choice(deeds)} {rng.choice(names)} about the {rng.choice(things)} on Monday"}
        for _ in range(max(2, line_count(rng) // 5))
    ]
    indented = json.dumps(records, indent=rng.choice((1, 2, 4)), ensure_ascii=False)
    compact = json.dumps(records, ensure_ascii=False)
    pattern = re.compile(r'(\s*)("(?:\\.|[^"\\])*"|[^\s"])')
    written: Written = []
    for one, two in zip(pattern.finditer(indented), pattern.finditer(compact), strict=True):
        written += [(one[1], two[1]), one[2]]
    return written


def statements(rng: random.Random) -> Written:
    """SQL; another id and another amount in each INSERT."""
    names, states = some(NAMES, rng), some(STATES, rng)
    written: Written = []
    for _ in range(line_count(rng)):
        ids, amounts = (number(rng), number(rng)), (number(rng, 3), number(rng, 3))
        written += ["INSERT INTO orders (id, name, state, amount) VALUES (", ids]
        written += [f", '{rng.choice(names)}', '{rng.choice(states)}', ", amounts, ");\n"]
    return written


COLUMNS = ("name", "state", "about", "amount")


def _table(rng: random.Random) -> tuple[list[list[str]], tuple[str, str, str]]:
    """A table's head and rows, and what stands before, between and behind the cells of a row."""
    names, states, things = some(NAMES, rng, least=2), some(STATES, rng, least=2), some(THINGS, rng, least=2)
    rows = [
        [rng.choice(names), rng.choice(states), rng.choice(things), number(rng, rng.choice((1, 3)))]
        for _ in range(line_count(rng))
    ]
    return [list(COLUMNS), *rows], rng.choice((("| ", " | ", " |\n"), ("", ",", "\n")))


def table_with_values(rng: random.Random) -> Written:
    """A table; all values of one column are others."""
    (head, *rows), (before, between, behind) = _table(rng)
    column = rng.randrange(len(COLUMNS))
    values = [row[column] for row in rows]
    written: Written = [before, between.join(head), behind]
    for row in rows:
        cells: Written = [cell if at != column else (cell, rng.choice(values)) for at, cell in enumerate(row)]
        written += [before, cells[0]]
        for cell in cells[1:]:
            written += [between, cell]
        written += [behind]
    return written


def table_without_rows(rng: random.Random) -> Written:
    """A table, and the same less up to a quarter of its rows, wherever they are."""
    rows, (before, between, behind) = _table(rng)
    gone = rng.choice((0.02, 0.1, 0.25))
    lines = [f"{before}{between.join(row)}{behind}" for row in rows]
    return [(line, "") if at and rng.random() < gone else line for at, line in enumerate(lines)]


def _song(rng: random.Random) -> list[str]:
    """Lines drawn from few."""
    animals = some(ANIMALS, rng)
    lines = [line.replace("{}", rng.choice(animals)) for line in rng.sample(VERSES, rng.randint(3, 6))]
    return [rng.choice(lines) for _ in range(line_count(rng))]


def song_with_words(rng: random.Random) -> Written:
    """A song; in every verse of four lines one word is another."""
    written: Written = []
    for index, line in enumerate(_song(rng)):
        words = line.split(" ")
        if index % 4 == 0:
            place = rng.randrange(len(words))
            before, behind = "".join(f"{word} " for word in words[:place]), words[place + 1 :]
            written += [before, (words[place], other(ANIMALS, words[place], rng))]
            written += ["".join(f" {word}" for word in behind), "\n"]
        else:
            written += [f"{line}\n"]
    return written


def song_with_lines(rng: random.Random) -> Written:
    """A song; in some verses a line of it is sung once more, or left out, never in two that follow."""
    lines = [f"{line}\n" for line in _song(rng)]
    written: Written = []
    for start in range(0, len(lines), 4):
        verse = lines[start : start + 4]
        change = rng.choice(("insert", "leave out", "")) if start % 8 == 0 else ""
        if change == "insert":
            written += [("", rng.choice(lines)), *verse]
        elif change == "leave out":
            written += [(verse[0], ""), *verse[1:]]
        else:
            written += verse
    return written


def _letter(rng: random.Random, named: Callable[[], tuple[str, str]]) -> Written:
    """Sentences about two people, again and again."""
    verbs, states, things = some(VERBS, rng), some(STATES, rng), some(THINGS, rng)
    written: Written = []
    for _ in range(line_count(rng)):
        written += [named(), f" {rng.choice(verbs)} ", named()]
        written += [f" about the {rng.choice(states)} {rng.choice(things)} of last week.\n"]
    return written


def names_masked(rng: random.Random) -> Written:
    """Every name a mask in the one version."""
    names = some(NAMES, rng)
    return _letter(rng, lambda: (rng.choice(names), "[NAME]"))


def names_swapped(rng: random.Random) -> Written:
    """Two people's names exchanged, of four to twelve people who are named."""
    one, other, *names = rng.sample(NAMES, rng.randint(4, len(NAMES)))
    pairs = [(one, other), (other, one), *((name, name) for name in names)]
    return _letter(rng, lambda: rng.choice(pairs))


def two_names_swapped(rng: random.Random) -> Written:
    """Two people's names exchanged, nobody else named: a text with a line left out often says as much."""
    pairs = [("Bob", "Ann"), ("Ann", "Bob")]
    return _letter(rng, lambda: rng.choice(pairs))


def _function(name: str, fields: Sequence[str], rng: random.Random) -> list[str]:
    return [
        f"def {name}(records: list[dict[str, str]]) -> int:\n",
        '    """Counts the records that are so."""\n',
        "    count = 0\n",
        "    for record in records:\n",
        f'        if record["{rng.choice(fields)}"] == "{rng.choice(STATES)}":\n',
        "            count += 1\n",
        "    return count\n\n\n",
    ]


def functions_changed(rng: random.Random) -> Written:
    """Functions that are much alike, of which every fourth has a line more."""
    fields = some(THINGS, rng)
    written: Written = []
    for index in range(max(4, line_count(rng) // 7)):
        lines = _function(f"count_{rng.choice(STATES)}_{rng.choice(fields)}", fields, rng)
        if index % 4 == 1:
            place = rng.randrange(3, 6)
            new = f"{'    ' * (place - 2)}log.debug('{rng.choice(STATES)}')\n"
            written += [*lines[:place], ("", new), *lines[place:]]
        else:
            written += lines
    return written


VALUES: Mapping[str, Callable[[random.Random], Written]] = {
    "lists, names changed": list_with_names,
    "lists, numbers changed": list_with_numbers,
    "lists and songs, line ends become spaces": lines_joined,
    "logs, another time in each line": log_with_times,
    "logs, ids and levels changed": log_with_ids,
    "JSON records, ids and values changed": records_with_values,
    "JSON, indented and compact": records_indented,
    "SQL inserts, values changed": statements,
    "tables, a column changed": table_with_values,
    "tables, rows deleted": table_without_rows,
    "songs, one word changed a verse": song_with_words,
    "songs, lines inserted and left out": song_with_lines,
    "names masked": names_masked,
    "names swapped": names_swapped,
    "one of several alike functions changed": functions_changed,
}
UNDECIDED: Mapping[str, Callable[[random.Random], Written]] = {
    "lists, every name changed": list_with_all_names,
    "names swapped, of two people": two_names_swapped,
}
"""What was changed is not the least that could have been: no target."""


# ---- Every character of its kind -------------------------------------------------------------------------

UNUSUAL = {"invoice": "ｉｎｖｏｉｃｅ", "late": "ﬁnal", "order": "order №", "open": "½", "report": "report™"}
ACCENTED = {
    "invoice": "écriture",
    "late": "très tôt",
    "order": "commandé",
    "open": "à régler",
    "report": "résumé",
}


def any_text(rng: random.Random) -> str:
    """A list, a log, records, a table, a song, a letter or code."""
    return text_of(rng, [make for make in VALUES.values() if make is not records_indented])


def text_of(rng: random.Random, makers: Sequence[Callable[[random.Random], Written]]) -> str:
    """The one version of what one of these makes."""
    return laid(rng.choice(makers)(rng)).text


def with_words(text: str, words: Mapping[str, str]) -> str:
    """The text with these words for those."""
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], text)


def nfkc(rng: random.Random) -> Version:
    """Wide letters, ligatures, signs and fractions, and what NFKC makes of them."""
    text = with_words(any_text(rng), UNUSUAL)
    return Version(text, normalisers.nfkc(text))


def lower_case(rng: random.Random) -> Version:
    """A text, and the same without capitals."""
    text = any_text(rng)
    if rng.random() < 0.3:  # noqa: PLR2004
        text = text.title()
    return Version(text, normalisers.lower_case(text))


def white_space(rng: random.Random) -> Version:
    """A text whose lines are indented, and the same with one space for every run."""
    lines = any_text(rng).splitlines()
    text = "\n".join(f"{' ' * (4 * rng.randrange(3))}{line}" for line in lines)
    return Version(text, oracle.substitutions(text, re.compile(r"\s+"), " "))


def json_escapes(rng: random.Random) -> Version:
    r"""A text with accents, and the same with `\u00e1` and its like."""
    text = with_words(any_text(rng), ACCENTED)
    return Version(
        text, normalisers.by_character(text, lambda one: one if one.isascii() else f"\\u{ord(one):04x}")
    )


def entities(rng: random.Random) -> Version:
    """A text with quotes, brackets and accents, and the same with HTML's entities."""
    text = with_words(any_text(rng), ACCENTED)
    return Version(text, normalisers.by_character(text, _entity))


def _entity(character: str) -> str:
    return html.escape(character) if character.isascii() else f"&#{ord(character)};"


CHARACTERS: Mapping[str, Callable[[random.Random], Version]] = {
    "NFKC": nfkc,
    "lower case": lower_case,
    "white space collapsed, lines of a kind": white_space,
    "accents as JSON's escapes": json_escapes,
    "HTML entities": entities,
}


# ---- Real source code ------------------------------------------------------------------------------------

KEYWORDS = frozenset(("def", "return", "self", "class", "import", "from", "else", "None", "True", "False"))


def identifiers_renamed(source: Sequence[str], rng: random.Random) -> Version:
    """Functions of real source code; the three names that they use most are others."""
    text = "\n\n\n".join(rng.sample(source, rng.randint(1, 5)))
    words = re.findall(r"\b[A-Za-z_]\w{3,}\b", text)
    usual = sorted(
        {word for word in words if word not in KEYWORDS}, key=lambda word: (-words.count(word), word)
    )
    names = {word: f"{rng.choice(THINGS)}_{index}" for index, word in enumerate(usual[:3])}
    matches = re.finditer(rf"\b({'|'.join(map(re.escape, names))})\b", text)
    return Version(text, [Change(*match.span(), names[match[0]]) for match in matches])


def function_moved(source: Sequence[str], rng: random.Random) -> Version:
    """Functions of real source code, one of which moves past others that are longer together."""
    functions = [f"{one}\n\n\n" for one in rng.sample(source, rng.randint(4, 7))]
    moved = functions.pop(functions.index(min(functions, key=len)))
    first = rng.randrange(len(functions))
    jumped = ""
    for function in functions[first:]:
        jumped += function
        if len(jumped) > 2 * len(moved):
            break
    before = len("".join(functions[:first]))
    rest = "".join(functions[first:])
    text = f"{''.join(functions[:first])}{moved}{rest}"
    start, end = before + len(moved), before + len(moved) + len(jumped)
    return Version(text, [Change(before, start, ""), Change(end, end, moved)], values=False)


CODE: Mapping[str, Callable[[Sequence[str], random.Random], Version]] = {
    "identifiers renamed in source code": identifiers_renamed,
    "a function moved": function_moved,
}
