"""Real tokenizers under real templates: the ids are the rendering's, and a prompt's are those of inference.

Tokenizers stand beside templates of models whose markers they have. Rows without a template are real ones,
as they are, between words, and cut inside a word.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import assets
from conftest import needs_assets
from dskd import Vocabulary
from dskd.train.rows import Plain
from dskd.train.side import Encoded, Side
from real_tokenizers import folder_of
from test_templates import KINDS, NEEDS, REASONS, STOP_OF, STOP_OF_A_CALL, Case, sources

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dskd.train.rendering import Rendering

# Their decoders give a text back as it was; those of SentencePiece put spaces behind markers.
FITTING: Mapping[str, tuple[str, ...]] = {
    "deepseek-v3": (
        *("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.1"),
        *("deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4", "deepseek-ai-DeepSeek-V4-Flash-0731"),
    ),
    "gemma4": ("google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"),
    "llama3": (
        *("fireworks-ai-llama-3-firefunction-v2", "meetkai-functionary-medium-v3.2"),
        *("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"),
    ),
    "qwen2": (
        *("MiMo-VL", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen3-Coder", "Qwen3.5-4B"),
        "openbmb-MiniCPM5-1B",
    ),
    "smollm2": ("HuggingFaceTB-SmolLM3-3B",),
}
CASES = [
    (tokenizer, case)
    for tokenizer, names in FITTING.items()
    for case in (Case(name, kind) for name in names for kind in KINDS)
    if case not in REASONS
]

each_case = pytest.mark.parametrize(("tokenizer", "case"), CASES, ids=str)


@functools.cache
def tokenizer_of(name: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(folder_of(name)))


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer_of(name))


@functools.cache
def side_of(tokenizer: str, template: str) -> Side:
    """As a run has it: the model's generation configuration names its stops."""
    own = tokenizer_of(tokenizer)
    return Side(
        own,
        vocabulary_of(tokenizer),
        chat_template=sources()[template],
        template_kwargs=NEEDS.get(template, {}),
        stop_ids=(own.convert_tokens_to_ids(STOP_OF[template]),),
    )


@functools.cache
def encoded(tokenizer: str, case: Case) -> list[tuple[Rendering, Encoded]]:
    side = side_of(tokenizer, case.name)
    return [(row, side.encode(row)) for row in side.render(case.conversation)]


@each_case
def test_the_ids_decode_to_the_rendering(tokenizer: str, case: Case) -> None:
    for row, ids in encoded(tokenizer, case):
        assert tokenizer_of(tokenizer).decode(ids.ids) == row.text


@each_case
def test_the_supervised_ids_are_the_supervised_text(tokenizer: str, case: Case) -> None:
    for row, ids in encoded(tokenizer, case):
        for turn, place in zip(row.turns, ids.turns, strict=True):
            supervised = tokenizer_of(tokenizer).decode(ids.ids[place.start : place.end])
            assert supervised == row.text[turn.start : turn.end]


@each_case
def test_the_last_supervised_id_is_a_stop(tokenizer: str, case: Case) -> None:
    own = tokenizer_of(tokenizer)
    stops = {STOP_OF[case.name], STOP_OF_A_CALL.get(case.name, STOP_OF[case.name])}
    for _, ids in encoded(tokenizer, case):
        for place in ids.turns:
            assert own.convert_ids_to_tokens(ids.ids[place.end - 1]) in stops


@each_case
def test_the_ids_before_a_turn_are_those_that_the_model_is_asked_by(tokenizer: str, case: Case) -> None:
    """Of the first turn of a row; what stands before a later one the model once wrote, in its own tokens."""
    for row, ids in encoded(tokenizer, case):
        asked = row.text[: row.turns[0].start]
        before = tokenizer_of(tokenizer)(asked, add_special_tokens=False)["input_ids"]
        assert ids.ids[: ids.turns[0].start] == before


# Rows without a template -------------------------------------------------------

COUNTS = {0: 500, 3: 100}
"""How many rows, by the characters of the completion that stand in the prompt."""

PLAIN = (
    *("deepseek-llm", "deepseek-v3", "falcon", "gemma4", "gpt-neox", "gpt2", "llama2", "llama3", "phi3"),
    *("qwen2", "smollm2", "starcoder", "xlm-r"),
)
"""Those that transformers opens and that have an end of sequence."""

EXACT = tuple(name for name in PLAIN if name != "xlm-r")
"""Those that leave a text as it is: XLM-R's normaliser collapses white space."""

each_cut = pytest.mark.parametrize("inside", COUNTS, ids=["between words", "inside a word"])


@functools.cache
def plain_rows(inside: int) -> list[Plain]:
    """Real rows."""
    rows = needs_assets(lambda: assets.prompt_rows("train", COUNTS[inside]))
    return [Plain(row.prompt + row.completion[:inside], row.completion[inside:]) for row in rows]


@functools.cache
def plain_ids(tokenizer: str, inside: int) -> list[Encoded]:
    side = Side(tokenizer_of(tokenizer), vocabulary_of(tokenizer))
    return [side.encode(side.render(row)[0], is_plain=True) for row in plain_rows(inside)]


def without_ends(tokenizer: str, ids: list[int]) -> list[int]:
    """Without the beginning and the end of sequence."""
    own = tokenizer_of(tokenizer)
    return [token for token in ids if token not in (own.bos_token_id, own.eos_token_id)]


def alone(tokenizer: str, text: str) -> list[int]:
    """The ids of one text, without specials around it."""
    ids: list[int] = tokenizer_of(tokenizer)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def bytes_of(tokenizer: str, ids: list[int]) -> bytes:
    """What ordinary tokens write."""
    vocabulary = vocabulary_of(tokenizer)
    return b"".join(vocabulary.token_bytes(token) or b"" for token in without_ends(tokenizer, ids))


@each_cut
@pytest.mark.parametrize("name", EXACT)
def test_prompt_and_response_have_the_bytes_of_the_text(name: str, inside: int) -> None:
    """But for the space that SentencePiece puts before a text."""
    opening = b" " if vocabulary_of(name).dummy_prefix else b""
    for row, found in zip(plain_rows(inside), plain_ids(name, inside), strict=True):
        [turn] = found.turns
        prompt = opening + row.prompt.encode()
        assert bytes_of(name, found.ids[: turn.start]) == prompt
        assert bytes_of(name, found.ids[turn.start : turn.end]) == row.completion.encode()


@pytest.mark.parametrize("name", PLAIN)
def test_between_words_the_ids_are_those_of_the_whole_text(name: str) -> None:
    for row, found in zip(plain_rows(0), plain_ids(name, 0), strict=True):
        assert without_ends(name, found.ids) == alone(name, row.prompt + row.completion)


@pytest.mark.parametrize("name", EXACT)
def test_where_a_token_lies_across_the_prompt_is_as_the_model_is_asked_by_it_and_that_is_counted(
    name: str,
) -> None:
    across = 0
    for row, found in zip(plain_rows(3), plain_ids(name, 3), strict=True):
        whole = alone(name, row.prompt + row.completion)
        if is_parted(name, whole, row.prompt):
            assert without_ends(name, found.ids) == whole
            assert found.straddled == 0
        else:
            [turn] = found.turns
            assert without_ends(name, found.ids[: turn.start]) == alone(name, row.prompt)
            assert found.straddled == 1
            across += 1
    assert across > 0


def is_parted(tokenizer: str, whole: list[int], prompt: str) -> bool:
    """Whether a token of a text ends where its prompt does."""
    vocabulary = vocabulary_of(tokenizer)
    lengths = [len(vocabulary.token_bytes(token) or b"") for token in whole]
    return len(prompt.encode()) + vocabulary.dummy_prefix in accumulate(lengths)


@pytest.mark.parametrize("name", PLAIN)
def test_a_row_begins_as_its_tokenizer_begins_a_text_and_ends_with_the_end_of_sequence(name: str) -> None:
    own = tokenizer_of(name)
    opening = [token for token in own("")["input_ids"][:1] if token == own.bos_token_id]
    for found in plain_ids(name, 0):
        assert found.ids[: len(opening) + 1] == [*opening, found.ids[len(opening)]]
        assert own.bos_token_id not in found.ids[len(opening) : -1]
        assert found.ids[-1] == own.eos_token_id
