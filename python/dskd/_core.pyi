from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "COUNTS",
    "MAX_ENTRIES",
    "MAX_TOKEN_BYTES",
    "Aligner",
    "Found",
    "Vocabulary",
    "__version__",
    "read_flags",
    "read_ids",
]

COUNTS: list[str]
MAX_ENTRIES: int
MAX_TOKEN_BYTES: int
__version__: str

@final
class Vocabulary:
    @staticmethod
    def from_parts(
        arena: bytes,
        lengths: npt.NDArray[np.uint32],
        kinds: npt.NDArray[np.uint8],
        roles: Mapping[int, AbstractSet[str]],
        dummy_prefix: bool,
    ) -> Vocabulary: ...
    @staticmethod
    def from_spellings(
        spellings: Sequence[str | None],
        kinds: npt.NDArray[np.uint8],
        roles: Mapping[int, AbstractSet[str]],
        steps: Sequence[tuple[str, str, str]],
        dummy_prefix: bool,
    ) -> Vocabulary: ...
    def parts(
        self,
    ) -> tuple[bytes, npt.NDArray[np.uint32], npt.NDArray[np.uint8], dict[int, set[str]], bool]: ...
    def __len__(self) -> int: ...
    @property
    def dummy_prefix(self) -> bool: ...
    def roles(self) -> dict[int, set[str]]: ...
    def token_bytes(self, token_id: int) -> bytes | None: ...
    def kind(self, token_id: int) -> int: ...
    def canonical_ids(self) -> npt.NDArray[np.int32]: ...
    def spans(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...

@final
class Aligner:
    def __new__(cls, teacher: Vocabulary, student: Vocabulary) -> Aligner: ...
    def align(
        self,
        teacher_ids: npt.NDArray[Any] | list[npt.NDArray[Any]],
        teacher_offsets: npt.NDArray[np.int64] | None,
        teacher_mask: npt.NDArray[np.bool_] | None,
        student_ids: npt.NDArray[Any] | list[npt.NDArray[Any]],
        student_offsets: npt.NDArray[np.int64] | None,
        student_mask: npt.NDArray[np.bool_] | None,
        num_threads: int,
    ) -> Found: ...

@final
class Found:
    def pairs(self) -> list[npt.NDArray[Any]]: ...
    def chunks(self) -> list[npt.NDArray[Any]]: ...
    def differences(self) -> list[npt.NDArray[Any]]: ...
    def counts(self) -> npt.NDArray[np.int64]: ...

def read_ids(
    data: object,
) -> tuple[npt.NDArray[Any] | list[npt.NDArray[Any]], npt.NDArray[np.int64]] | None: ...
def read_flags(data: object) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]] | None: ...
