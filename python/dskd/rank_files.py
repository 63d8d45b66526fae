r"""Vocabulary files that list ids with their bytes; which of the three kinds one is, its content says.

    *.tiktoken          IQ== 0                              base64 and rank (GPT-4, Llama 3, Qwen)
    tekken.json         {"config": ..., "vocab": [...]}     ranks, behind the special tokens (Mistral)
    rwkv_vocab_*.txt    3 '\x02' 1                          id, Python literal and its length in bytes (RWKV)

Files may come from anywhere: nothing in them is run, an id and a token have limits, and a line that is
malformed is named.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from dskd import _core
from dskd.pieces import Kind, Pieces, refuse_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["read_rank_file"]

_Json = dict[str, Any]

# A token's byte is `\xe2` at most, in a literal with an id before it and a length behind.
_LONGEST_LINE = 4 * _core.MAX_TOKEN_BYTES + 100
_LARGEST_JSON = 1 << 26  # tekken.json has 20 MB, and of brackets alone Python makes 20 times as much


def read_rank_file(path: str | Path) -> Pieces:
    """The ids of a rank file and their bytes; see `Vocabulary.from_file`."""
    path = Path(path)
    with path.open("rb") as file:
        first = file.readline(_LONGEST_LINE).strip()
    if first.startswith(b"{"):
        return _read_tekken(path)
    read_line = next((read for pattern, read in _KINDS_OF_LINE if re.match(pattern, first)), None)
    if read_line is None:
        raise ValueError(
            f"{path}: line 1 is neither that of a *.tiktoken file (base64 and rank), nor of a tekken.json, "
            "nor of an RWKV vocabulary (id, literal and length); a tokenizer.json or a SentencePiece model "
            "is opened by its library and given to Vocabulary.from_tokenizer"
        )
    tokens = _Tokens()
    for place, line in _lines(path):
        tokens.add(*read_line(place, line), place)
    return tokens.pieces(path)


class _Tokens:
    """The bytes of ids as they come, each once and none beyond the limits."""

    def __init__(self, name: str = "id") -> None:
        self._name = name
        self.by_id: dict[int, bytes] = {}

    def add(self, token_id: int, token: bytes, place: str) -> None:
        if token_id >= _core.MAX_ENTRIES:
            raise ValueError(
                f"{place}: {self._name} {token_id}; {self._name}s end at {_core.MAX_ENTRIES - 1}"
            )
        if token_id in self.by_id:
            raise ValueError(
                f"{place}: {self._name} {token_id} is there already, as {self.by_id[token_id]!r}"
            )
        if not 0 < len(token) <= _core.MAX_TOKEN_BYTES:
            raise ValueError(
                f"{place}: a token of {len(token)} bytes; 1 to {_core.MAX_TOKEN_BYTES} are allowed"
            )
        self.by_id[token_id] = token

    def pieces(self, path: Path) -> Pieces:
        """All of them; an id between them that the file does not have is opaque."""
        slots = max(self.by_id, default=-1) + 1
        refuse_slots(slots, len(self.by_id), f"{path} defines id {slots - 1}")
        tokens = [self.by_id.get(token_id) for token_id in range(slots)]
        return Pieces(tokens, [Kind.OPAQUE if token is None else Kind.NORMAL for token in tokens])


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank, each with how to call it."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            place = f"{path}, line {number}"
            if len(line) == _LONGEST_LINE:
                raise ValueError(f"{place} has {_LONGEST_LINE} bytes or more; no token is so long")
            if line.strip():
                yield place, line.strip()


# ---- base64 and rank -------------------------------------------------------------------------------------


def _read_tiktoken_line(place: str, line: bytes) -> tuple[int, bytes]:
    found = re.fullmatch(rb"(\S+) (\d{1,19})", line)
    if found is None:
        raise ValueError(f"{place} is {_shown(line)}; it should be a token in base64, a space and its rank")
    return int(found[2]), _base64(place, found[1])


def _base64(place: str, text: bytes | str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{place}: {_shown(text)} is not base64 ({error})") from error


def _shown(text: bytes | str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN]) + ("" if len(text) <= _SHOWN else " ...")


_SHOWN = 60


# ---- id, literal and length ------------------------------------------------------------------------------


def _read_rwkv_line(place: str, line: bytes) -> tuple[int, bytes]:
    found = re.fullmatch(rb"(\d{1,19}) (b?(['\"]).*\3) (\d{1,19})", line)
    if found is None:
        raise ValueError(
            f"{place} is {_shown(line)}; it should be an id, a Python literal (str or bytes) and its length "
            "in bytes"
        )
    token = _literal(place, found[2])
    if len(token) != int(found[4]):
        raise ValueError(
            f"{place}: {_shown(found[2])} has {len(token)} bytes, and the line says {int(found[4])}"
        )
    return int(found[1]), token


def _literal(place: str, text: bytes) -> bytes:
    try:
        value = ast.literal_eval(text.decode())
        token = value.encode() if isinstance(value, str) else value
    # Of a line as long as a hostile file likes, the parser runs out of stack; UnicodeError is a ValueError.
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{place}: {_shown(text)} is no literal of text or bytes ({error})") from error
    if not isinstance(token, bytes):
        raise ValueError(f"{place}: {_shown(text)} is no literal of text or bytes")  # noqa: TRY004 - a file
    return token


_KINDS_OF_LINE: tuple[tuple[bytes, Callable[[str, bytes], tuple[int, bytes]]], ...] = (
    (rb"\d+ b?['\"]", _read_rwkv_line),
    (rb"[A-Za-z0-9+/]+=* \d+$", _read_tiktoken_line),
)


# ---- tekken ----------------------------------------------------------------------------------------------

_TEKKEN_ROLES = {"<unk>": "unk", "<s>": "bos", "</s>": "eos", "<pad>": "pad"}
_TEKKEN_SPECIALS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""The first special tokens, of files that do not list them (those of 2024)."""


def _read_tekken(path: Path) -> Pieces:
    """Special tokens first, then the ranks; the vocabulary is cut to what the model has."""
    contents = _json(path)
    config, vocab, listed = contents["config"], contents["vocab"], contents.get("special_tokens")
    specials, slots = (
        _count(path, config, key) for key in ("default_num_special_tokens", "default_vocab_size")
    )
    if slots <= specials:
        raise ValueError(
            f"{path}: default_vocab_size is {slots}, with {specials} special tokens; it should be more than "
            "those"
        )
    refuse_slots(slots, len(vocab) + len(listed or ()), f"{path} has default_vocab_size {slots}")
    tokens = _tekken_ranks(path, vocab, slots - specials)
    literals = _tekken_specials(path, listed, specials)
    spellings = [literals[i].encode() if i in literals else None for i in range(specials)]
    named = {i: {_TEKKEN_ROLES[literal]} for i, literal in literals.items() if literal in _TEKKEN_ROLES}
    kinds = [Kind.SPECIAL] * specials + [Kind.NORMAL] * len(tokens)
    return Pieces([*spellings, *tokens], kinds, named)


def _tekken_ranks(path: Path, vocab: list[Any], count: int) -> list[bytes]:
    """The bytes of the ranks from 0 to one less than `count`."""
    tokens = _Tokens("rank")
    for index, entry in enumerate(vocab):
        place = f"{path}, vocab[{index}]"
        rank = _rank(place, entry)
        if rank < count:
            tokens.add(rank, _base64(place, _text(place, entry, "token_bytes")), place)
    found = tokens.by_id
    missing = next((rank for rank in range(count) if rank not in found), None)
    if missing is not None:
        raise ValueError(
            f"{path}: rank {missing} is not in its vocab, which should have all from 0 to {count - 1}"
        )
    return [found[rank] for rank in range(count)]


def _tekken_specials(path: Path, listed: list[Any] | None, count: int) -> dict[int, str]:
    """The literals of the first `count` ids, as far as the file lists them."""
    if listed is None:
        return dict(enumerate(_TEKKEN_SPECIALS[:count]))
    literals: dict[int, str] = {}
    for index, entry in enumerate(listed):
        place = f"{path}, special_tokens[{index}]"
        rank, literal = _rank(place, entry), _text(place, entry, "token_str")
        if rank >= count:
            raise ValueError(
                f"{place}: {literal!r} has rank {rank}, and default_num_special_tokens is {count}"
            )
        if rank in literals:
            raise ValueError(f"{place}: rank {rank} of {literal!r} is there already, as {literals[rank]!r}")
        literals[rank] = literal
    return literals


def _json(path: Path) -> _Json:
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, and a tekken.json has {_LARGEST_JSON} at most"
        )
    try:
        contents = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    shape = isinstance(contents.get("config"), dict) and isinstance(contents.get("vocab"), list)
    if not shape or not isinstance(contents.get("special_tokens", []), list | None):
        hint = "; give Vocabulary.from_tokenizer what tokenizers.Tokenizer.from_file makes of it"
        raise ValueError(
            f"{path} is no tekken.json, which has a config, a list vocab and perhaps a list special_tokens"
            + (hint if "model" in contents else "")
        )
    return dict(contents)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count(path: Path, config: _Json, key: str) -> int:
    value = config.get(key)
    if not _is_count(value):
        raise ValueError(f"{path}: its config has {key} = {value!r}; it should be a number")
    return value


def _rank(place: str, entry: Any) -> int:
    rank = entry.get("rank") if isinstance(entry, dict) else None
    if not _is_count(rank):
        raise ValueError(f"{place} has rank {rank!r}; it should be a number from 0 on")
    return rank


def _text(place: str, entry: _Json, key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{place} has {key} = {value!r}; it should be a string")  # noqa: TRY004 - a file
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} has {key} = {value!r}, which is not Unicode text") from error
    return value
