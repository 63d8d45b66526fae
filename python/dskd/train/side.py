"""One model's side of a row: the ids that it reads and writes, and which of them it has to write.

A row is rendered (by the chat template, or as it stands), and the whole text is tokenised at once, as where
the model is asked. Where a token of that lies across the place at which the model begins to write, the text
is cut there and tokenised in parts: so is what the model is asked by, and what it then writes.

Places in a text become places among ids by bytes: those of a token, and of a marker its literal.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dskd.nn.places import IGNORED
from dskd.train.laying import Layer
from dskd.train.rendering import Rendering, Template, Turn, any_of
from dskd.train.rows import Plain

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dskd.train.laying import Laid
    from dskd.train.rendering import TrainOn
    from dskd.train.rows import Conversation
    from dskd.vocabulary import Vocabulary

__all__ = ["STUDENT", "AddBos", "Encoded", "EncodedTurn", "Side", "SystemRole", "stops_of"]

STUDENT = "student"
"""What the student's side is called beside those of the teachers, which have names of their own."""

AddBos: TypeAlias = Literal["auto", "true", "false"]
SystemRole: TypeAlias = Literal["system", "user", "drop"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """What the model has to write, once; places among the ids of its row.

    Attributes:
        start: its first id.
        reasoning: where its reasoning begins; None: it has none.
        content: where what follows that begins; what stands before is this side's alone.
        end: behind its last id.
        ends: whether that ends the turn; not where the response was cut.
        place: where in the text of the row its content begins, in bytes.
    """

    start: int
    reasoning: int | None
    content: int
    end: int
    ends: bool
    place: int = 0

    def opens(self, *, with_reasoning: bool) -> int:
        """Where what two models may share begins."""
        return self.reasoning if with_reasoning and self.reasoning is not None else self.content

    def moved(self, by: int) -> EncodedTurn:
        """The same so many ids further on; not before the first."""
        start, content, end = (max(index + by, 0) for index in (self.start, self.content, self.end))
        reasoning = None if self.reasoning is None else max(self.reasoning + by, 0)
        return replace(self, start=start, reasoning=reasoning, content=content, end=end)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row on one side.

    Attributes:
        ids: what the model reads and writes.
        turns: what of it the model writes, in order.
        places: where in the text of the row each id ends, in bytes; None: the tokenizer changed the text.
        straddled: beginnings of turns across which a token would lie, were the text not tokenised in parts.
    """

    ids: list[int]
    turns: tuple[EncodedTurn, ...]
    places: list[int] | None = None
    straddled: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether no response was cut."""
        return all(turn.ends for turn in self.turns)

    def labels(self) -> list[int]:
        """The id at each position that is supervised, -100 elsewhere."""
        return self._labels((turn.start, turn.end) for turn in self.turns)

    def shared_labels(self, with_reasoning: Iterable[bool]) -> list[int]:
        """The same of what another model's row may share; a flag for each turn."""
        return self._labels(
            (turn.opens(with_reasoning=both), turn.end)
            for turn, both in zip(self.turns, with_reasoning, strict=True)
        )

    def _labels(self, spans: Iterable[tuple[int, int]]) -> list[int]:
        labels = [IGNORED] * len(self.ids)
        for start, end in spans:
            labels[start:end] = self.ids[start:end]
        return labels


@dataclass(frozen=True)  # no slots: what is made at its first use is kept in the dictionary
class Side:
    """How rows become ids for one of the models; picklable.

    Attributes:
        tokenizer: of transformers, fast.
        vocabulary: what the aligner knows of it.
        max_prompt_length: in tokens, of what stands before the first supervised turn.
        max_response_length: in tokens, of a turn.
        chat_template: Jinja text in place of the tokenizer's own.
        template_kwargs: its variables, for all rows.
        stop_ids: that end a turn beside the tokenizer's `eos`: of the model's generation configuration.
        add_bos: whether a row begins with the beginning of sequence: `auto`, as its template writes it, and
            for plain text as the tokenizer puts it there or the template would.
        train_on: all turns of the assistant, or the last.
        parse_markers: whether the literal of a special in a text of a row is that special, as when the model
            is asked; or text, for texts that one does not trust.
        system_role: what becomes of a system message that stands first: it stays, or stands in front of the
            first question (`user`), for templates that refuse one; or is dropped.
    """

    tokenizer: Any
    vocabulary: Vocabulary
    max_prompt_length: int = 512
    max_response_length: int = 512
    chat_template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    add_bos: AddBos = "auto"
    train_on: TrainOn = "all"
    parse_markers: bool = True
    system_role: SystemRole = "system"

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made at its first use."""
        return {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}

    @functools.cached_property
    def _layer(self) -> Layer:
        return Layer(self.tokenizer, self.vocabulary)

    @functools.cached_property
    def template(self) -> Template:
        """Its chat template.

        Raises:
            ValueError: it has none.
        """
        return Template(
            self.tokenizer,
            chat_template=self.chat_template,
            kwargs=self.template_kwargs,
            stops=self._stops,
        )

    @functools.cached_property
    def stop_id(self) -> int:
        """The id that ends a turn: as its template writes it, or else the end of sequence."""
        end: int = self.tokenizer.eos_token_id
        if self.chat_template is None and not self.tokenizer.chat_template:
            return end
        stop = self.template.stop
        found = end if stop is None else self.tokenizer.convert_tokens_to_ids(stop)
        return end if found is None else int(found)

    @functools.cached_property
    def _stops(self) -> tuple[str, ...]:
        """The markers that are known to end a turn."""
        known = dict.fromkeys((*self.stop_ids, self.tokenizer.eos_token_id))
        added = self.tokenizer.added_tokens_decoder
        return tuple(added[token].content for token in known if token in added)

    @functools.cached_property
    def _ends(self) -> tuple[str, ...]:
        """The same with what its template writes behind a turn."""
        try:
            written = self.template.stop
        except ValueError:
            written = None
        return self._stops if written is None else (*self._stops, written)

    # ---- Text --------------------------------------------------------------------------------------------

    def render(self, row: Conversation | Plain) -> list[Rendering]:
        """The texts of a row: one, or one for each turn of the assistant; see `Template.render`.

        Raises:
            ValueError: the template refuses the row.
        """
        if isinstance(row, Plain):
            return [self._plain(row)]
        return self.template.render(self._without_system(row), train_on=self.train_on)

    def _without_system(self, row: Conversation) -> Conversation:
        """With its system message as `system_role` says."""
        first, *rest = row.messages
        if self.system_role == "system" or first["role"] != "system":
            return row
        if self.system_role == "user" and rest and rest[0]["role"] == "user":
            said = f"{first['content']}\n\n{rest[0]['content']}"
            rest = [{**rest[0], "content": said}, *rest[1:]]
        return replace(row, messages=rest, prompt_messages=max(row.prompt_messages - 1, 0))

    def _plain(self, row: Plain) -> Rendering:
        """Text as it stands; a marker at its end that ends a turn is that end."""
        start, text = len(row.prompt), row.prompt + row.completion
        kept = text.rstrip()
        said = next((len(kept) - len(stop) for stop in self._ends if kept.endswith(stop)), -1)
        has_stop = self.parse_markers and said >= start
        text, said = (kept, said) if has_stop else (text, len(text))
        turn = Turn(start, None, start, len(text), has_stop)
        return Rendering(text, (turn,), ((0, start), (start, said)))

    # ---- Ids ---------------------------------------------------------------------------------------------

    def encode(self, rendering: Rendering, *, is_plain: bool = False) -> Encoded:
        """A text in ids.

        Args:
            rendering: of `render`.
            is_plain: whether no template wrote it, so that nothing has put a beginning before it.
        """
        marked = self._marked(rendering)
        if marked and self.parse_markers:
            _warn_of(rendering.text, marked[0])
        laid, straddled = self._laid(rendering, [] if self.parse_markers else marked)
        index = functools.partial(_index, laid, rendering.text)
        turns = tuple(_turn(turn, index, _bytes(rendering.text, turn.content)) for turn in rendering.turns)
        found = Encoded(laid.ids, turns, laid.ends if laid.is_exact else None, straddled)
        found = self._begun(self._ended(found), is_plain=is_plain)
        _refuse_ids_beyond(self.vocabulary.size, found.ids)
        return found

    def _laid(self, rendering: Rendering, as_text: Sequence[tuple[int, int]]) -> tuple[Laid, int]:
        """The whole text at once; cut where a token would lie across the beginning or the end of a turn.

        With how many would lie across a beginning.
        """
        text, turns = rendering.text, rendering.turns
        laid = self._layer.lay(text, as_text=as_text)
        edges = {place for turn in turns for place in (turn.start, turn.end)}
        if laid.is_exact:
            across = {place for place in edges if not laid.parts(_bytes(text, place))}
            straddled = sum(turn.start in across for turn in turns)
            return (self._layer.lay(text, across, as_text=as_text) if across else laid), straddled
        inner = {place for turn in turns for place in (turn.reasoning, turn.content) if place is not None}
        return self._layer.lay(text, edges | inner, as_text=as_text), 0

    def _marked(self, rendering: Rendering) -> list[tuple[int, int]]:
        """The spans of what people said that hold the literal of a marker."""
        literals = self._literals
        if literals is None:
            return []
        return [span for span in rendering.contents if literals.search(rendering.text, *span)]

    @functools.cached_property
    def _literals(self) -> re.Pattern[str] | None:
        added = self.tokenizer.added_tokens_decoder.values()
        return any_of([one.content for one in added if one.special and one.content.strip()])

    def _ended(self, found: Encoded) -> Encoded:
        """With an end of sequence behind a last turn whose text has no end."""
        last = found.turns[-1]
        if last.ends:
            return found
        ids = [*found.ids[: last.end], self.tokenizer.eos_token_id]
        places = None if found.places is None else [*found.places[: last.end], *(found.places[-1:] or [0])]
        turns = (*found.turns[:-1], replace(last, end=len(ids), ends=True))
        return replace(found, ids=ids, places=places, turns=turns)

    def _begun(self, found: Encoded, *, is_plain: bool) -> Encoded:
        """With the beginning of sequence, or without it, as told."""
        bos = self.tokenizer.bos_token_id
        has_one = bos is not None and found.ids[:1] == [bos]
        wanted = {"true": True, "false": False, "auto": self._opens if is_plain else has_one}[self.add_bos]
        if bos is None or wanted == has_one:
            return found
        places = found.places
        if wanted:
            ids, places = [bos, *found.ids], None if places is None else [0, *places]
        else:
            ids, places = found.ids[1:], None if places is None else places[1:]
        moved = tuple(turn.moved(1 if wanted else -1) for turn in found.turns)
        return Encoded(ids, moved, places, found.straddled)

    @functools.cached_property
    def _opens(self) -> bool:
        """Whether plain text begins with the beginning of sequence: by its tokenizer, or its template."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return False
        if bos in self.tokenizer("")["input_ids"]:
            return True
        try:
            return self.template.writes_bos
        except ValueError:
            return False


def stops_of(model: Any) -> tuple[int, ...]:
    """The ids that end a turn by a model's generation configuration."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)


def _refuse_ids_beyond(size: int, ids: Sequence[int]) -> None:
    """Refuses what its tokenizer has an id for and its model no row."""
    if max(ids, default=-1) >= size:
        column = next(index for index, one in enumerate(ids) if one >= size)
        raise ValueError(
            f"it has the id {ids[column]} at position {column}, and the model has ids 0 to {size - 1}: leave "
            "the row out, or that token's text"
        )


_SAID = 120
"""Characters of a text in a warning."""

_WARNED: set[str] = set()


def _warn_of(text: str, span: tuple[int, int]) -> None:
    """Says once that a text of a row holds the literal of a special token, which is read as that."""
    if not _WARNED:
        said = text[slice(*span)]
        _WARNED.add(said)
        _LOG.warning(
            "a text of a row holds the literal of a special token, which is read as that token, as when the "
            "model is asked: %r. parse_markers=False reads it as text",
            said[:_SAID],
        )


def _turn(turn: Turn, index: Callable[[int], int], place: int) -> EncodedTurn:
    start, content = index(turn.start), index(turn.content)
    reasoning = None if turn.reasoning is None else index(turn.reasoning)
    return EncodedTurn(start, reasoning, content, index(turn.end), turn.has_stop, place)


def _index(laid: Laid, text: str, place: int) -> int:
    return laid.index(_bytes(text, place))


def _bytes(text: str, place: int) -> int:
    return len(text[:place].encode())
