"""A conversation as one model's chat template writes it, and what of it the model itself has to write.

A model is asked with the *generation prompt* of the messages so far, and writes the rest of its turn up to
the marker that ends it. So for every assistant turn two renderings are compared, that of the messages before
it with the generation prompt, and that of the messages up to it: what the second has more is supervised.
Where the messages behind a turn change how it looks (Qwen3 drops earlier thinking, gpt-oss ends the last
turn by another marker), no text shows every turn as the model has to write it, and each is a row of its own.

Many templates do not put the content straight behind the generation prompt: what stands between
(`<|channel|>final<|message|>`, an empty `<think>` block) belongs to that model alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import jinja2
from jinja2 import meta
from transformers.utils.chat_template_utils import render_jinja_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from dskd.train.rows import Conversation

__all__ = ["Rendering", "Template", "TrainOn", "Turn", "any_of", "supervised"]

TrainOn: TypeAlias = Literal["all", "last"]

Message: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn that is supervised; places are characters of the text.

    Attributes:
        start: where the generation prompt ends: the first character that the model has to write.
        reasoning: where its reasoning begins; None: it has none, or the template does not write it.
        content: where its content begins, or else its first tool call.
        end: behind the marker that ends the turn.
        has_stop: whether there is such a marker: a few templates write none.
    """

    start: int
    reasoning: int | None
    content: int
    end: int
    has_stop: bool


@dataclass(frozen=True, slots=True)
class Rendering:
    """One row of one side.

    Attributes:
        text: as the template writes it.
        turns: those that are supervised, in order.
        contents: the spans of the messages' contents, in order: the text of others than the template.
        unseen: what of the row is not in it, by name.
    """

    text: str
    turns: tuple[Turn, ...]
    contents: tuple[tuple[int, int], ...] = ()
    unseen: frozenset[str] = frozenset()


class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: of transformers.
        chat_template: Jinja text in place of the tokenizer's own.
        kwargs: variables of the template (`enable_thinking`), for all rows; a row's own beat them.
        stops: markers that are known to end a turn: of the generation configuration, of the tokenizer.

    Raises:
        ValueError: there is no template, or it cannot be compiled.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        stops: Iterable[str] = (),
    ) -> None:
        """See the class."""
        self._tokenizer = tokenizer
        self._own = chat_template
        self._kwargs = dict(kwargs or {})
        self.stops = frozenset(stops)
        self._markers = any_of([*_added(tokenizer), *self.stops])
        self._variables = _variables(self._source(None))

    # ---- The template itself ----------------------------------------------------------------------------

    @property
    def stop(self) -> str | None:
        """The marker that ends a turn of the assistant; None: the template writes none."""
        return self._closing.stop

    @functools.cached_property
    def _closing(self) -> _Closing:
        return _closing(self)

    def _source(self, tools: Any) -> str:
        if self._own is not None:
            return self._own
        try:
            found: str = self._tokenizer.get_chat_template(None, tools=tools)
        except ValueError as error:
            raise ValueError(
                "the tokenizer has no chat template, and the row has messages: give chat_template, or rows "
                "with a prompt and a completion that are strings"
            ) from error
        return found

    def write(
        self, messages: Sequence[Message], conversation: Conversation | None = None, *, asking: bool = False
    ) -> str:
        """The rendering of messages; `asking` with the generation prompt behind it.

        Raises:
            ValueError: the template refuses them; in its own words.
        """
        tools = None if conversation is None else conversation.tools
        variables = {**self._kwargs, **({} if conversation is None else conversation.template_kwargs)}
        said = [{**message, "content": message.get("content") or ""} for message in messages]
        try:
            return self._write(said, tools, asking=asking, **variables)
        except _REFUSALS as error:
            refused = ValueError(f"the chat template refuses it: {error}{_way_out(messages, error)}")
        with contextlib.suppress(*_REFUSALS):  # some templates join the arguments of a call as text
            return self._write(_with_text_arguments(said), tools, asking=asking, **variables)
        raise refused

    def _write(self, messages: Sequence[Message], tools: Any, *, asking: bool, **variables: Any) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._own,
            tools=tools,
            tokenize=False,
            add_generation_prompt=asking,
            **variables,
        )
        return text

    @property
    def writes_bos(self) -> bool:
        """Whether it puts the tokenizer's beginning of sequence somewhere, which is in front."""
        return "bos_token" in self._variables

    # ---- Rows -------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation, *, train_on: TrainOn = "all") -> list[Rendering]:
        """A row, or a row for each assistant turn where a later turn changes what earlier ones look like.

        Args:
            conversation: what was said.
            train_on: every assistant turn, or the `last`.

        Raises:
            ValueError: the template refuses it, or it cannot be told what of it the model has to write.
        """
        turns = supervised(conversation, train_on)
        unseen = self._unseen(conversation)
        rows = [self._row(conversation, index) for index in turns]
        if len(rows) > 1:
            rows = _joined(rows) or rows
        return [replace(row, unseen=row.unseen | unseen) for row in rows]

    def _unseen(self, conversation: Conversation) -> frozenset[str]:
        """What of a row the template does not look at: of `tools`, its variables, fields of its messages."""
        kwargs = conversation.template_kwargs
        found = {f"chat_template_kwargs: {name}" for name in kwargs if name not in self._variables}
        messages = conversation.messages
        if conversation.tools and self.write(messages, conversation) == self.write(
            messages, replace(conversation, tools=None)
        ):
            found.add("tools")
        others = {name for message in messages for name in message} - _LOOKED_AT
        return frozenset(found | {name for name in others if not self._looks_at(name, conversation)})

    def _looks_at(self, field: str, conversation: Conversation) -> bool:
        """Whether a message reads otherwise without the field, as the last one of those up to it."""
        messages = conversation.messages
        for index, message in enumerate(messages):
            if field in message:
                bare = {name: value for name, value in message.items() if name != field}
                before = messages[:index]
                if self.write([*before, message], conversation) != self.write([*before, bare], conversation):
                    return True
        return False

    def _row(self, conversation: Conversation, index: int) -> Rendering:
        """One assistant turn and all before it, as the model is asked and has to answer."""
        messages = conversation.messages
        message = messages[index]
        if not index:
            raise ValueError(
                "message 0 (from 0) is the assistant's, and no generation prompt asks for it: begin with "
                "what it answers, or learn only later ones (train_on: last)"
            )
        asked = self.write(messages[:index], conversation, asking=True)
        text = self.write(messages[: index + 1], conversation)
        try:
            text, start = _continued(asked, text, message, index), len(asked)
        except ValueError:
            start = self._marked(asked, text, conversation, index)
        parts = _parts(message, text, start, index, functools.partial(self._otherwise, conversation, index))
        text, end, has_stop = self._ended(text, parts.end, conversation, index)
        turn = Turn(start, parts.reasoning, parts.content, end, has_stop)
        dropped = parts.reasoning is None and _reasoning(message)
        return Rendering(
            text,
            (turn,),
            (*self._contents(conversation, index, text[:start]), *parts.said),
            frozenset({f"the reasoning of message {index} (from 0)"} if dropped else ()),
        )

    def _otherwise(self, conversation: Conversation, index: int, changed: Message) -> str:
        """The rendering of the messages up to this one, which is another one."""
        return self.write([*conversation.messages[:index], changed], conversation)

    def _contents(self, conversation: Conversation, index: int, asked: str) -> list[tuple[int, int]]:
        """The spans of what was said before a message, in what it is asked by.

        Those with markers exactly: they may be taken for the template's own.
        """
        messages, spans, place = conversation.messages[:index], list[tuple[int, int]](), 0

        def otherwise(number: int, changed: Message) -> str:
            return self.write(
                [*messages[:number], changed, *messages[number + 1 :]], conversation, asking=True
            )

        for number, message in enumerate(messages):
            content = (message.get("content") or "").strip()
            if any(self.markers_in(content)):
                write = functools.partial(otherwise, number)
                at = _find(content, asked, place, message, ("content",), write)
            else:
                at = asked.find(content, place)
            place = at + len(content) if at >= 0 else place
            at = asked.find(content) if at < 0 else at  # some templates move the system message
            if content and at >= 0:
                spans.append((at, at + len(content)))
        return sorted(spans)

    def _marked(self, asked: str, text: str, conversation: Conversation, index: int) -> int:
        """Where the turn begins by the template's own `{% generation %}` markers.

        Raises:
            ValueError: it has none, or they begin before what the model is asked by ends.
        """
        messages, source = conversation.messages, self._source(conversation.tools)
        if _GENERATION.search(source):
            rendered: Any = render_jinja_template(
                [messages[: index + 1]],
                tools=cast("Any", conversation.tools),
                chat_template=source,
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, **self._kwargs, **conversation.template_kwargs},
            )
            (written,), (spans,) = rendered
            if written == text and spans and spans[-1][0] >= len(_shared(asked, text)):
                return int(spans[-1][0])
        raise ValueError(_torn(asked, text, index) + self._that_fit(conversation, index))

    def _that_fit(self, conversation: Conversation, index: int) -> str:
        """Which variables of the template would make a turn go on from what the model is asked by."""
        messages, found = conversation.messages, []
        for name in sorted(_THINKING & self._variables - conversation.template_kwargs.keys()):
            for value in (False, True):
                told = replace(conversation, template_kwargs={**conversation.template_kwargs, name: value})
                with contextlib.suppress(ValueError):
                    asked = self.write(messages[:index], told, asking=True)
                    _continued(asked, self.write(messages[: index + 1], told), messages[index], index)
                    found.append(json.dumps({name: value}))
        return f"; it fits with chat_template_kwargs {' or '.join(found)}" if found else ""

    def _ended(self, text: str, behind: int, conversation: Conversation, index: int) -> tuple[str, int, bool]:
        """The text, where its last turn ends, and whether by a marker: a template may leave it open."""
        if not self._closing.left_open:
            if (length := self._stop_in(text[behind:])) is not None:
                return text, behind + length, True
            kept = text[:behind] + text[behind:].rstrip()
            return kept, len(kept), False
        known = {*self.stops, self._closing.stop}
        if found := next((one for one in self.markers_in(text[behind:]) if one[0] in known), None):
            return text, behind + found.end(), True
        kept = text[:behind] + text[behind:].rstrip()
        kept += self._written_later(kept[max(behind - _ANCHOR, 0) :], self._next(conversation, index))
        return kept, len(kept), True

    def _written_later(self, last: str, more: str) -> str:
        """What stands behind the last words of a turn, up to the marker that ends it."""
        at = more.rfind(last)
        behind = "" if at < 0 else more[at + len(last) :]
        length = self._stop_in(behind, first=True)
        return str(self._closing.stop) if length is None else behind[:length]

    def _next(self, conversation: Conversation, index: int) -> str:
        """A turn and the message behind it, which is made up where there is none."""
        messages = conversation.messages
        said = messages[: index + 1]
        following = messages[index + 1 : index + 2]
        if not following:
            calls = messages[index].get("tool_calls")
            answer = {"role": "tool", "content": _ASKED, "name": "tool", "tool_call_id": "0"}
            following = [answer if calls else {"role": "user", "content": _ASKED}]
        return self.write([*said, *following], conversation)

    def _stop_in(self, tail: str, *, first: bool = False) -> int | None:
        """Behind the marker that ends a turn, of what stands behind its content; None: there is none.

        It is one that is known to end turns, or else the last (`first`: the first).
        """
        markers = list(self.markers_in(tail))
        if not markers:
            return None
        known = {*self.stops, self._closing.stop}
        return next((one.end() for one in markers if one[0] in known), markers[0 if first else -1].end())

    def markers_in(self, text: str) -> Iterator[re.Match[str]]:
        """Where the added tokens of its tokenizer stand, and the stops."""
        return iter(()) if self._markers is None else self._markers.finditer(text)


# ---- How a template ends a turn ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Closing:
    """What a template writes behind a turn of the assistant.

    Attributes:
        stop: the marker that ends it; None: there is none.
        left_open: whether it is written only where another turn follows.
    """

    stop: str | None
    left_open: bool


_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""What rendering may raise: a template says no, or meets what it did not expect."""

_SAID = "a7f3 said"
_ASKED = "b9c1 asked"


def _closing(template: Template) -> _Closing:
    """Found by rendering two short conversations."""
    asked, said = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}
    last = _behind(template.write([asked, said]))
    try:
        more = template.write([asked, said, asked])
        inner = _behind(more[: more.rindex(_ASKED)])
    except ValueError:
        inner = ""
    opening = template.write([asked], asking=True)
    opening = opening[len(_shared(template.write([asked]), opening)) :]
    of_next = {one[0] for one in template.markers_in(opening)}
    if stop := _stop_of(template, _shared(last, inner), of_next) or _stop_of(template, last, of_next):
        return _Closing(stop, left_open=False)
    stop = _stop_of(template, inner, of_next, first=True)
    return _Closing(stop, left_open=stop is not None)


def _behind(text: str) -> str:
    """What stands behind what the assistant said."""
    return text[text.rindex(_SAID) + len(_SAID) :] if _SAID in text else ""


def _stop_of(template: Template, tail: str, of_next: set[str], *, first: bool = False) -> str | None:
    """The marker that ends a turn: one that is known to, or else the last (`first`: the first).

    None of those with which the next turn begins.
    """
    markers = [one[0] for one in template.markers_in(tail) if one[0] not in of_next]
    known = [one for one in markers if one in template.stops]
    if known or not markers:
        return known[0] if known else None
    return markers[0 if first else -1]


def _shared(one: str, other: str) -> str:
    """What both begin with."""
    length = next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    return one[:length]


# ---- Of one turn -------------------------------------------------------------------------------------------


def supervised(conversation: Conversation, train_on: TrainOn) -> list[int]:
    """Which messages are to be learnt.

    Raises:
        ValueError: there are none.
    """
    turns = [
        index
        for index, message in enumerate(conversation.messages)
        if message["role"] == "assistant" and index >= conversation.prompt_messages
    ]
    if not turns:
        raise ValueError("there is no turn of the assistant, so nothing to learn")
    return turns if train_on == "all" else turns[-1:]


def _joined(rows: Sequence[Rendering]) -> list[Rendering] | None:
    """All turns in one text, if that shows each as it is by itself."""
    last = rows[-1]
    turns = [row.turns[0] for row in rows]
    alike = (last.text.startswith(row.text[: row.turns[0].end]) for row in rows)
    if not all(turn.has_stop for turn in turns) or not all(alike):
        return None
    unseen = frozenset[str]().union(*(row.unseen for row in rows))
    return [Rendering(last.text, tuple(turns), last.contents, unseen)]


def _continued(asked: str, text: str, message: Message, index: int) -> str:
    """The rendering of a turn so that it begins with what the model is asked by.

    Some templates end the generation prompt with an empty block of reasoning that they drop from what was
    said, and some write the system message only where a question is last: the model reads what it is asked
    by, and has to write what stands behind it.
    """
    if text.startswith(asked):
        return text
    apart = _before_tag(text, len(_shared(asked, text)))
    first = _first_part(message, text)
    found = text.find(first, max(apart - len(first), 0)) if first else apart
    begins = max(found, 0)
    apart = min(apart, begins)
    more, between = asked[apart:], text[apart:begins]
    is_closed = not _TAG.sub("", between).strip() and len(_TAG.findall(more)) >= _BOTH_ENDS
    if found >= 0 and (is_closed or _end_alike(asked, text[:begins])):
        return asked + text[begins:]
    raise ValueError(_torn(asked, text, index))


def _torn(asked: str, text: str, index: int) -> str:
    """What to say where a turn is no continuation of what the model is asked by."""
    apart = _before_tag(text, len(_shared(asked, text)))
    return (
        f"message {index} (from 0): the generation prompt ends in {asked[apart:][-_SHOWN:]!r}, and the turn "
        f"as the template writes it begins with {text[apart : apart + _SHOWN]!r}, so it cannot be told what "
        "the model has to write; give another chat_template, the turn's reasoning_content, or "
        "chat_template_kwargs"
    )


def _end_alike(asked: str, before: str) -> bool:
    """Whether two texts end in the same marker."""
    ends = [_TAG.findall(one)[-1:] for one in (asked, before)]
    return ends[0] == ends[1] != [] and asked.endswith(ends[0][0]) and before.endswith(ends[0][0])


def _before_tag(text: str, place: int) -> int:
    """The place, or the beginning of the tag that it lies in: `<think>` and `</think>` share `<`."""
    inside = _OPEN_TAG.search(text, 0, place)
    return inside.start() if inside else place


_TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_OPEN_TAG = re.compile(r"<[^<>\s]*$")
_BOTH_ENDS = 2
_SHOWN = 40
_THINKING = frozenset({"enable_thinking", "thinking"})
"""Variables by which templates are told whether the model thinks."""

_ANCHOR = 20
_OTHER = "c3d8 other"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_REASONING = ("reasoning_content", "reasoning", "thinking")

_LOOKED_AT = frozenset({"role", "content", "tool_calls", "tool_call_id", "name", *_REASONING})
"""Fields that are looked for by themselves, and those without which no text is lost."""

_CLOSED = "</think>"


@dataclass(frozen=True, slots=True)
class _Parts:
    """Where the parts of a turn lie in its text; `said`: the spans of its reasoning and its content."""

    reasoning: int | None
    content: int
    end: int
    said: list[tuple[int, int]]


def _parts(
    message: Message, text: str, start: int, index: int, otherwise: Callable[[Message], str]
) -> _Parts:
    """The places of a message's reasoning, content and tool calls, behind `start`."""
    reasoning, content = _split(message, text, start)
    place, opened, first = start, None, None
    said = []
    if reasoning and (at := _find(reasoning, text, start, message, _REASONING, otherwise)) >= 0:
        opened, place = at, at + len(reasoning)
        said.append((at, place))
    if content:
        at = _find(content, text, place, message, ("content",), otherwise)
        if at < 0:
            raise ValueError(
                f"message {index} (from 0): the chat template does not write its content as it stands, "
                f"{content[:_SHOWN]!r}; it cannot be found in {text[start : start + 2 * _SHOWN]!r}"
            )
        first, place = at, at + len(content)
        said.append((at, place))
    for name in _called(message):
        at = text.find(name, place) if name in text[place:] else text.find(name, start)
        if at < 0:
            raise ValueError(
                f"message {index} (from 0): the chat template does not write its call of {name!r}"
            )
        first = at if first is None else min(first, at)
        place = max(place, at + len(name))
    if first is None:
        first = place if opened is None else opened
    return _Parts(opened, first, place, said)


def _find(
    words: str,
    text: str,
    place: int,
    message: Message,
    names: Iterable[str],
    otherwise: Callable[[Message], str],
) -> int:
    """Where words of a message begin in its rendering; -1: nowhere.

    Where they stand more than once, the template may have written some (`final` of `<|channel|>final`): their
    place is then that at which other words stand, had the message those.
    """
    at = text.find(words, place)
    if at < 0 or text.find(words, at + 1) < 0:
        return at
    for name in names:
        before, found, behind = str(message.get(name) or "").rpartition(words)
        if found:
            tail = otherwise({**message, name: f"{before}{_OTHER}{behind}"}).rpartition(_OTHER)[2]
            exact = len(text) - len(tail) - len(words)
            if exact >= place and text[exact:] == words + tail:
                return exact
    return at


def _split(message: Message, text: str, start: int) -> tuple[str, str]:
    """Reasoning and content, without the white space around them, which templates cut off."""
    given = _reasoning(message)
    content = (message.get("content") or "").strip()
    if content and _CLOSED in content and content not in text[start:]:
        inner, _, content = content.rpartition(_CLOSED)
        return inner.rpartition("<think>")[2].strip(), content.strip()
    return given, content


def _reasoning(message: Message) -> str:
    """Under whichever name it stands, without the white space around it."""
    return str(next((message[name] for name in _REASONING if message.get(name)), "")).strip()


def _called(message: Message) -> Iterator[str]:
    """The names of the functions that it calls."""
    for call in message.get("tool_calls") or ():
        yield str(call.get("function", call).get("name", ""))


def _first_part(message: Message, text: str) -> str:
    """What of the message comes first in its rendering; empty where that is a tool call."""
    reasoning, content = _split(message, text, 0)
    return reasoning if reasoning in text and reasoning else content


# ---- Of the tokenizer --------------------------------------------------------------------------------------


def _added(tokenizer: Any) -> list[str]:
    """The literals of its added tokens that may be markers: not white space."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]


def any_of(literals: Sequence[str]) -> re.Pattern[str] | None:
    """Finds any of them, the longest first."""
    if not literals:
        return None
    return re.compile("|".join(map(re.escape, sorted(literals, key=len, reverse=True))))


def _variables(source: str) -> set[str]:
    """The variables that a template reads; every name, where its syntax is not plain Jinja's."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701 - no HTML
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    try:
        return meta.find_undeclared_variables(environment.parse(plain))
    except jinja2.TemplateError:
        return set(re.findall(r"\w+", source))


def _with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """The same with the arguments of tool calls as JSON text."""
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_text(call: Message) -> Message:
    if "function" in call:
        return {**call, "function": _with_text(call["function"])}
    return {**call, "arguments": json.dumps(call.get("arguments"), ensure_ascii=False)}


def _way_out(messages: Sequence[Message], error: Exception) -> str:
    """What to do about it, where that can be guessed."""
    if "system" in str(error).lower() and any(message["role"] == "system" for message in messages):
        return " (system_role: user writes such a message in front of the first question, drop leaves it out)"
    return ""
