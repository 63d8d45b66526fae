"""Real tokenizers under real templates: the ids are the rendering's, and a prompt's are those of inference.

Tokenizers stand beside templates of models whose markers they have. What else a side has to keep for every
tokenizer (bytes, the joint tokenisation, cuts) belongs here as well.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import transformers

from dskd import Vocabulary
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
