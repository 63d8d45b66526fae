"""A row on all sides at once, cut where it is too long.

A conversation loses whole exchanges from its front, though not its system message, then calls of its last
one with their results; a text that is too long by itself loses its front; a response loses its end, on all
sides at the same byte where they have one in common. What is cut is counted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from dskd.train.rendering import supervised
from dskd.train.rows import Conversation, Plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dskd.train.rendering import Rendering
    from dskd.train.side import Encoded, Side

__all__ = ["Fitted", "fit"]

Sides: TypeAlias = "Mapping[str, Side]"
EncodedSides: TypeAlias = "dict[str, Encoded]"

_SYSTEM = ("system", "developer")

_LEAST = 16
"""Characters of a text below which it is not cut any more."""

_SPARE = 0.9
"""Of the share of a text that would fit if all its tokens were as long: what is kept of it."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One row of ids.

    Attributes:
        sides: of each model, by its name.
        shortened: whether its prompt lost something.
    """

    sides: EncodedSides
    shortened: bool = False


def fit(row: Conversation | Plain, sides: Sides) -> list[Fitted]:
    """A row, or a row for each turn that is learnt, where the sides cannot show all of them in one.

    Args:
        row: of text.
        sides: of all models.

    Raises:
        ValueError: a side refuses it; what of the row no template looks at; it cannot be cut.
    """
    if isinstance(row, Plain):
        return [_fitted(row, sides)]
    rendered = {name: _rendered(name, side, row) for name, side in sides.items()}
    _refuse_unseen(rendered)
    if all(len(rows) == 1 for rows in rendered.values()):
        whole = {name: sides[name].encode(rows[0]) for name, rows in rendered.items()}
        if not _is_too_long(whole, sides):
            return [Fitted(whole)]
    train_on = next(iter(sides.values())).train_on
    return [_fitted(_up_to(row, index), sides) for index in supervised(row, train_on)]


def _rendered(name: str, side: Side, row: Conversation | Plain) -> list[Rendering]:
    try:
        return side.render(row)
    except ValueError as error:
        raise ValueError(f"the {name}'s side: {error}") from error


def _refuse_unseen(rendered: Mapping[str, Sequence[Rendering]]) -> None:
    """What nobody would look at, where one could believe it was."""
    unseen = [frozenset[str]().union(*(row.unseen for row in rows)) for rows in rendered.values()]
    if nobody := sorted(frozenset.intersection(*unseen)):
        raise ValueError(
            f"no chat template looks at {', '.join(nobody)}; leave it out of the row, or give a "
            "chat_template that does"
        )


def _up_to(row: Conversation, index: int) -> Conversation:
    """The same with this message as its last, and as the only one that is learnt."""
    return replace(row, messages=row.messages[: index + 1], prompt_messages=index)


def _fitted(row: Conversation | Plain, sides: Sides) -> Fitted:
    """A row with one turn, cut until it fits."""
    whole = row
    if isinstance(row, Conversation):
        row = _without_turns(row, sides, _questions(row))
        row = _without_turns(row, sides, _answers(row))
    found, shortened = _encoded(row, sides), row is not whole
    while (share := _share_that_fits(found, sides)) < 1 and _has_prompt(row):
        row, shortened = _shorter(row, share), True
        found = _encoded(row, sides)
    return Fitted(_cut(found, sides), shortened)


def _encoded(row: Conversation | Plain, sides: Sides) -> EncodedSides:
    is_plain = isinstance(row, Plain)
    return {
        name: side.encode(_rendered(name, side, row)[0], is_plain=is_plain) for name, side in sides.items()
    }


def _has_prompt(row: Conversation | Plain) -> bool:
    """Whether there is something before its turn."""
    return bool(row.prompt) if isinstance(row, Plain) else len(row.messages) > 1


def _is_too_long(found: EncodedSides, sides: Sides) -> bool:
    """Whether a row with all its turns is too long on a side."""
    for name, one in found.items():
        side = sides[name]
        longest = max(turn.end - turn.start for turn in one.turns)
        first = one.turns[0].start
        most = side.max_prompt_length + side.max_response_length
        if first > side.max_prompt_length or longest > side.max_response_length or len(one.ids) > most:
            return True
    return False


def _share_that_fits(found: EncodedSides, sides: Sides) -> float:
    """Of the prompt, on the side where it is least."""
    return min(
        sides[name].max_prompt_length / max(one.turns[-1].start, 1) if one.turns else 1.0
        for name, one in found.items()
    )


# ---- Prompts ---------------------------------------------------------------------------------------------


def _questions(row: Conversation) -> list[int]:
    """The messages with which an exchange begins."""
    return [index for index, message in enumerate(row.messages) if message["role"] == "user"]


def _answers(row: Conversation) -> list[int]:
    """Those of the assistant behind the last question: calls, each with its results, and what is learnt."""
    behind = max(_questions(row), default=0)
    messages = enumerate(row.messages)
    return [index for index, message in messages if index > behind and message["role"] == "assistant"]


def _without_turns(row: Conversation, sides: Sides, starts: Sequence[int]) -> Conversation:
    """Without as many as must go of the turns that begin at these messages, the first ones; not the last."""

    def without(count: int) -> Conversation:
        kept = [*row.messages[: starts[0]], *row.messages[starts[count] :]]
        return replace(row, messages=kept, prompt_messages=len(kept) - 1) if count else row

    def fits(count: int) -> bool:
        return _share_that_fits(_encoded(without(count), sides), sides) >= 1

    last = len(starts) - 1
    if last < 1 or fits(0):
        return row
    return without(bisect_left(range(1, last), True, key=fits) + 1)


def _shorter(row: Conversation | Plain, share: float) -> Conversation | Plain:
    """The same with less before its turn: of a conversation the longest text but for the system's."""
    if isinstance(row, Plain):
        return replace(row, prompt=row.prompt[len(row.prompt) - _length(row.prompt, share) :])
    messages = row.messages
    texts = {
        index: message.get("content") or ""
        for index, message in enumerate(messages[:-1])
        if message["role"] not in _SYSTEM
    }
    longest = max(texts, key=lambda index: len(texts[index]), default=0)
    cut = {**messages[longest], "content": _end_of(texts.get(longest, ""), share)}
    return replace(row, messages=[*messages[:longest], cut, *messages[longest + 1 :]])


def _length(text: str, share: float) -> int:
    """How much of a text to keep: less than all of it."""
    return max(min(int(len(text) * share * _SPARE), len(text) - 1), 0)


def _end_of(text: str, share: float) -> str:
    """The end of a text.

    Raises:
        ValueError: too little of it would be left.
    """
    if len(text) <= _LEAST:
        raise ValueError(
            f"the prompt does not fit into max_prompt_length: {text!r} is left of its longest text, and what "
            "the template writes around it, the system message or the tools are too long; raise "
            "max_prompt_length"
        )
    return text[-max(_length(text, share), _LEAST) :]


# ---- Responses -------------------------------------------------------------------------------------------


def _cut(found: EncodedSides, sides: Sides) -> EncodedSides:
    """All sides with their last turn cut to what is allowed, at a byte that they have in common."""
    most = {name: one.turns[-1].start + sides[name].max_response_length for name, one in found.items()}
    if all(one.turns[-1].end <= most[name] for name, one in found.items()):
        return found
    shared = _shared_byte(found, most)
    return {name: _cut_one(one, most[name], shared) for name, one in found.items()}


def _shared_byte(found: EncodedSides, most: Mapping[str, int]) -> int | None:
    """The last byte of the content, counted from its beginning, at which every side may be cut."""
    common: set[int] | None = None
    for name, one in found.items():
        if one.places is None:
            return None
        turn = one.turns[-1]
        ends = {place - turn.place for place in one.places[turn.content : most[name]] if place > turn.place}
        common = ends if common is None else common & ends
    return max(common, default=None) if common else None


def _cut_one(one: Encoded, most: int, shared: int | None) -> Encoded:
    turn = one.turns[-1]
    end = min(most, turn.end)
    if shared is not None and one.places is not None:
        end = min(end, bisect_right(one.places, turn.place + shared, lo=turn.content))
    ends = turn.ends and end == turn.end
    return replace(
        one,
        ids=one.ids[:end],
        turns=(*one.turns[:-1], replace(turn, end=end, ends=ends)),
        places=None if one.places is None else one.places[:end],
    )
