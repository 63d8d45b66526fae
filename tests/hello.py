"""Two small vocabularies, their aligner, a row of both, and batches that are large enough for threads."""

from __future__ import annotations

from dskd import Aligner, PairKind, Vocabulary

TEACHER = Vocabulary.from_bytes([b"Hello", b" world", b"!", None, None], roles={3: {"eos"}})
STUDENT = Vocabulary.from_bytes([b" Hello", b" wor", b"ld", b"!", None], roles={4: {"eos", "bos"}})
ALIGNER = Aligner(TEACHER, STUDENT)
HELLO = ([0, 1, 2, 3], [0, 1, 2, 3, 4])
"""Pairs: Hello (SPACE), ! (EXACT), the end (ROLE); chunks: Hello, world, !."""
HELLO_PAIRS = [(0, 0, PairKind.SPACE), (2, 3, PairKind.EXACT), (3, 4, PairKind.ROLE)]


def large_batch(count: int = 64, repeats: int = 200) -> tuple[list[list[int]], list[list[int]]]:
    """Enough tokens that the rows are dealt out to threads, rows of different lengths."""
    times = [1 + (index * 37) % repeats for index in range(count)]
    return [HELLO[0] * time for time in times], [HELLO[1] * time for time in times]
