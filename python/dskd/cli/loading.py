"""One tokenizer from a hub name, a local folder or a file: what the command line needs of it.

    a hub name, or a folder with tokenizer.json or tokenizer_config.json    read by transformers
    a folder with tokenizer.model alone, or a file of that kind             read by sentencepiece
    a file NAME.json                                                        read by tokenizers

The roles of special tokens come from what is read: transformers and sentencepiece know them, a single
tokenizer.json names none.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dskd.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["LoadedTokenizer", "TokenizerError", "load_tokenizer"]


class TokenizerError(ValueError):
    """A tokenizer cannot be had; the message says under which name, what was found, and the way out."""


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer, whichever library read it.

    Attributes:
        name: what to call it in a report.
        vocabulary: the bytes, kinds and roles of its ids.
        eos: how its vocabulary spells its end of sequence, where it has one.

    Two tokenizers of one vocabulary may still split a text differently: `encoding_hash` tells them apart.
    """

    name: str
    vocabulary: Vocabulary
    eos: str | None
    _encode_batch: Callable[[list[str]], list[list[int]]]
    _spellings: Callable[[list[int]], list[str]]
    _definition: Callable[[], bytes]

    @property
    def encoding_hash(self) -> str:
        """SHA-256 over what the library was told of how to split a text, in hexadecimal."""
        return hashlib.sha256(self._definition()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special token is added to it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, in as many threads as the library likes."""
        return self._encode_batch(list(texts))

    def spellings(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary file spells them: `Ġthe`, `▁the`, `<0xE2>`."""
        return self._spellings(list(ids))


def load_tokenizer(name: str, *, parse_special: bool = False) -> LoadedTokenizer:
    """The tokenizer of this name.

    Text is text: where `</s>` stands in it, its five characters are encoded, as transformers does with
    `split_special_tokens=True`. A special token covers no text, so one tokenizer that took the characters for
    its own special token, beside another that did not, would make a difference out of equal text. Added
    tokens that are not special (`<think>` in DeepSeek's vocabulary) are text and always used.

    Args:
        name: a hub name (`Qwen/Qwen2.5-0.5B`), a folder, or a file: tokenizer.json or a SentencePiece model.
            A folder or file of that name comes before the hub.
        parse_special: whether literals of special tokens in a text become those tokens after all.

    Raises:
        TokenizerError: there is none, it is of a kind that cannot be read, or `parse_special` is asked of a
            SentencePiece model, which never reads special tokens from text.
        ImportError: the library that reads it is not installed.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _load_folder(path, path.resolve().name, parse_special)
    if path.is_file():
        return _load_file(path, _name_of_file(path), parse_special)
    _refuse_what_is_no_hub_name(name)
    if (snapshot := _snapshot_without_hub(name)) is not None:
        return _load_folder(snapshot, name, parse_special)
    return _load_with_transformers(name, name, parse_special)


def _load_folder(folder: Path, name: str, parse_special: bool) -> LoadedTokenizer:
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        return _load_with_transformers(str(folder), name, parse_special)
    models = sorted(path for path in folder.glob("*.model*") if path.is_file())
    if len(models) == 1 or (folder / "tokenizer.model") in models:
        model = models[0] if len(models) == 1 else folder / "tokenizer.model"
        return _load_file(model, name, parse_special)
    if models:
        names = ", ".join(model.name for model in models)
        raise TokenizerError(f"{folder} has several models: {names}; name one of these files")
    if (folder / "tekken.json").is_file():
        return _load_file(folder / "tekken.json", name, parse_special)
    raise TokenizerError(
        f"{folder} has neither tokenizer.json nor tokenizer.model; name a folder that has one, or save a "
        "tokenizer there with tokenizer.save_pretrained(folder)"
    )


def _name_of_file(path: Path) -> str:
    """The file's name, or where that says nothing its folder's."""
    resolved = path.resolve()
    generic = resolved.name in ("tokenizer.json", "tokenizer.model")
    return resolved.parent.name or resolved.name if generic else resolved.name


def _load_file(path: Path, name: str, parse_special: bool) -> LoadedTokenizer:
    if path.suffix == ".json":
        return _load_with_tokenizers(path, name, parse_special)
    if ".model" in path.suffixes:
        return _load_with_sentencepiece(path, name, parse_special)
    raise TokenizerError(
        f"{path} is neither a tokenizer.json (*.json) nor a SentencePiece model (*.model); {_OF_RANKS}"
    )


_OF_RANKS = "a rank file says nothing of how text is split, and only dskd.Vocabulary.from_file reads it"


def _load_with_tokenizers(path: Path, name: str, parse_special: bool) -> LoadedTokenizer:
    import tokenizers  # noqa: PLC0415 - only who names such a file needs it

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        if _is_rank_file(path):
            raise TokenizerError(f"{path} is a rank file and no tokenizer.json; {_OF_RANKS}") from error
        raise TokenizerError(f"{path} is no tokenizer.json that tokenizers can read: {error}") from error
    return _from_tokenizers(tokenizer, tokenizer, name, None, parse_special)


def _is_rank_file(path: Path) -> bool:
    """Whether it is a tekken.json, or a list of another kind under a name that ends in .json."""
    try:
        Vocabulary.from_file(path)
    except ValueError:
        return False
    return True


def _load_with_transformers(source: str, name: str, parse_special: bool) -> LoadedTokenizer:
    tokenizer = _pretrained(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _from_slow(tokenizer, name, parse_special)
    return _from_tokenizers(tokenizer, backend, name, tokenizer.eos_token, parse_special)


def _pretrained(source: str) -> Any:
    _silence_transformers()
    import transformers  # noqa: PLC0415 - takes two seconds

    try:
        # Code that comes with a tokenizer is not run, and transformers does not ask on the terminal.
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of a dozen kinds, the backend's bare Exception among them
        raise TokenizerError(
            f"transformers cannot read the tokenizer of {source}: {_first_line(error)} (A folder with "
            "tokenizer.json, or a *.model file, is read as well.)"
        ) from error


def _silence_transformers() -> None:
    """Keeps advice off the terminal: that there is no PyTorch, which nothing here needs, and the like."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _from_tokenizers(
    tokenizer: Any, backend: Any, name: str, eos: str | None, parse_special: bool
) -> LoadedTokenizer:
    """From what the vocabulary is read of, and the `tokenizers.Tokenizer` that encodes."""
    vocabulary = _vocabulary(tokenizer, name)
    backend.encode_special_tokens = not parse_special
    # What a tokenizer.json may carry along, and what would cut or fill rows.
    backend.no_truncation()
    backend.no_padding()

    def encode_batch(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def spellings(ids: list[int]) -> list[str]:
        return [backend.id_to_token(token_id) for token_id in ids]

    def definition() -> bytes:
        text: str = backend.to_str()
        return text.encode()

    return LoadedTokenizer(name, vocabulary, eos, encode_batch, spellings, definition)


def _from_slow(tokenizer: Any, name: str, parse_special: bool) -> LoadedTokenizer:
    """From a tokenizer of transformers that encodes in Python."""
    vocabulary = _vocabulary(tokenizer, name)

    def encode_batch(texts: list[str]) -> list[list[int]]:
        options = {"add_special_tokens": False, "split_special_tokens": not parse_special}
        return [tokenizer.encode(text, **options) for text in texts]

    def definition() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            files = (Path(file) for file in tokenizer.save_pretrained(folder))
            return b"".join(file.read_bytes() for file in sorted(files) if file.is_file())

    return LoadedTokenizer(
        name,
        vocabulary,
        tokenizer.eos_token,
        encode_batch,
        tokenizer.convert_ids_to_tokens,
        definition,
    )


def _load_with_sentencepiece(path: Path, name: str, parse_special: bool) -> LoadedTokenizer:
    if parse_special:
        raise TokenizerError(
            f"{path} is a SentencePiece model, which never reads special tokens from text; name a folder "
            "with its tokenizer.json instead"
        )
    import sentencepiece  # noqa: PLC0415 - only who names such a file needs it

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"{path} is no SentencePiece model: {_first_line(error)} (Llama 3's tokenizer.model is a list of "
            "another kind; its tokenizer.json is read.)"
        ) from error
    eos = processor.id_to_piece(processor.eos_id()) if processor.eos_id() >= 0 else None
    vocabulary = _vocabulary(processor, name)
    return LoadedTokenizer(
        name,
        vocabulary,
        eos,
        processor.encode,
        processor.id_to_piece,
        processor.serialized_model_proto,
    )


def _vocabulary(tokenizer: Any, name: str) -> Vocabulary:
    try:
        return Vocabulary.from_tokenizer(tokenizer)
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"{name}: {error}") from error


# ---- The hub ---------------------------------------------------------------------------------------------

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_LOOKS_LIKE_A_FILE = (".json", ".model", ".gguf", ".txt")


def _refuse_what_is_no_hub_name(name: str) -> None:
    if not _HUB_NAME.fullmatch(name) or name.startswith((".", "-")) or name.endswith(_LOOKS_LIKE_A_FILE):
        raise TokenizerError(f"there is no file or folder {name}, and a hub name is OWNER/NAME or NAME")


def _snapshot_without_hub(name: str) -> Path | None:
    """Where the model was downloaded to, if the hub is out of reach now; None if it is not.

    The hub is asked once, since transformers asks twelve times, 50 seconds long, before it gives up.

    Raises:
        TokenizerError: neither the hub nor the cache has it.
    """
    import huggingface_hub  # noqa: PLC0415 - only who names a model on the hub needs it
    from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415

    nothing_here = f"there is no file or folder {name} here"
    try:
        huggingface_hub.HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise TokenizerError(
            f"{nothing_here} and no model of that name on the hub; if it is private, log in: hf auth login"
        ) from error
    except (
        Exception
    ) as error:  # no network, a proxy, an outage: the kinds of httpx or of requests, by version
        if (snapshot := _snapshot(name)) is None:
            raise TokenizerError(
                f"{nothing_here}, the hub is out of reach ({_first_line(error)}) and never gave {name} "
                "before; name a folder with tokenizer.json, or a *.model file"
            ) from error
        return snapshot
    return None


def _snapshot(name: str) -> Path | None:
    """The folder in the hub's cache that holds this model's tokenizer."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only who names a model needs it

    files = (try_to_load_from_cache(name, file) for file in ("tokenizer.json", "tokenizer.model"))
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
