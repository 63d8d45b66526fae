"""What tests/test_tokenizers.py runs in a process of its own: a small input, and little memory to read it.

python tests/hostile.py 'tekken largest' FOLDER    # prints the vocabulary, or why it is refused
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders, models

from dskd import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = 512 << 20
HIGH = {"largest": (1 << 24) - 1, "allowed": (1 << 18) - 1}


def tokenizer(vocabulary: dict[str, int], decoder: decoders.Decoder | None = None) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    made.decoder = decoder or decoders.ByteLevel()
    return made


def tekken(path: Path, specials: int) -> Path:
    config = {"default_num_special_tokens": specials, "default_vocab_size": specials + 1}
    vocab = [{"rank": 0, "token_bytes": "YQ=="}]
    path.write_text(json.dumps({"config": config, "vocab": vocab}), encoding="utf-8")
    return path


def written(path: Path, line: str) -> Path:
    path.write_text(line, encoding="utf-8")
    return path


def read(name: str, folder: Path) -> Callable[[], Vocabulary]:
    """What reads the input of this name."""
    kind, _, which = name.partition(" ")
    high = HIGH.get(which, 0)
    many = {f"a{number}": number for number in range(20_000)}
    match kind:
        case "tokenizer":
            made = tokenizer({"a": high})
        case "steps":
            made = tokenizer(many, decoders.Sequence([decoders.Replace("q", "r")] * 20_000))
        case "growth":
            made = tokenizer(many, decoders.Replace("a", "x" * 65_000))
        case "tekken":
            path = tekken(folder / "tekken.json", high - 1)
            return lambda: Vocabulary.from_file(path)
        case "tiktoken":
            path = written(folder / "a.tiktoken", f"YQ== {high}")
            return lambda: Vocabulary.from_file(path)
        case "rwkv":
            path = written(folder / "a.txt", f"{high} 'a' 1")
            return lambda: Vocabulary.from_file(path)
        case _:
            return lambda: Vocabulary.from_bytes([b"a"], size=high)
    return lambda: Vocabulary.from_tokenizer(made)


def main(name: str, folder: str) -> None:
    """Writes what comes of it; a `MemoryError`, or the end of the process, is no answer."""
    reader = read(name, Path(folder))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        answer = repr(reader())
    except ValueError as error:
        answer = str(error)
    sys.stdout.write(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
