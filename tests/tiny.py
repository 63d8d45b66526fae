"""Tiny models, tokenizers and rows for the tests of training, and what they must agree with."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dskd import Aligner, Vocabulary
from dskd.nn import LOSSES, Needs
from dskd.nn.losses.options import options_of
from dskd.train import (
    Collated,
    DistillationCollator,
    DistillationConfig,
    DistillationTrainer,
    Side,
    TeacherSide,
)
from test_loading import byte_level, sentencepiece_like

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "BESIDE",
    "CHAT",
    "EVERYTHING",
    "HIDDEN",
    "ONE_VOCABULARY",
    "ROWS",
    "TOKENIZERS",
    "TURNS",
    "UNGATED",
    "Reading",
    "assert_same",
    "assistant",
    "batch_of",
    "built_by",
    "collator",
    "collator_of",
    "fast_tokenizer",
    "gpt2",
    "llama",
    "options",
    "other_tokenizer",
    "overlap",
    "read",
    "sides_of",
    "spans_of",
    "step",
    "steps_logged",
    "student_tokenizer",
    "system",
    "teacher_of",
    "teacher_tokenizer",
    "token_pairs",
    "trainer",
    "two_teachers",
    "user",
]

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

_ROLES = "{{ bos_token }}{% for m in messages %}"
_BRACKETED = _ROLES + "[{{ m['role'] }}] {{ THOUGHT }}{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
_ASKED = "{% if add_generation_prompt %}[assistant] {% endif %}"
_THOUGHT = "{% if m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"

TURNS = {
    "marked": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "bracketed": _BRACKETED.replace("{{ THOUGHT }}", "") + _ASKED,
    "thinking": _BRACKETED.replace("{{ THOUGHT }}", _THOUGHT) + _ASKED,
}
"""Templates that end every turn: with a marker, or with the end of sequence; one writes reasoning."""


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# Words that both have, that only one has, and letters that the student spells in bytes; lengths differ a lot.
ROWS = [
    {"prompt": "The capital of France is", "completion": " Paris"},
    {"prompt": "Hello", "completion": " Hello world, and the answer is forty two or so, wörld"},
    {"prompt": "", "completion": "Paris is the answer"},
    {"prompt": "Say it:\n", "completion": " 知 the world\n\n  is"},
    {"prompt": "the the the the the the the the the", "completion": " world"},
    {"prompt": "Is it? ", "completion": "the answer is the world is the answer"},
    {"prompt": "What", "completion": "!"},
    {"prompt": "Name a city", "completion": " Paris, Hello Paris, world Paris"},
]

# Its types say nothing of how one is made.
fast_tokenizer: Any = transformers.PreTrainedTokenizerFast

HIDDEN = {"teacher": 24, "student": 16}


@functools.cache
def teacher_tokenizer() -> Any:
    """Byte-level BPE; nothing stands before a text, `</s>` is its end."""
    backend = byte_level("Hello", " world", " Paris", " the", " answer", " is", "Paris", "the", " forty")
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return fast_tokenizer(tokenizer_object=backend, eos_token="</s>", chat_template=CHAT)  # noqa: S106


@functools.cache
def other_tokenizer() -> Any:
    """Byte-level BPE of other words, for a second teacher; `</s>` is its end."""
    backend = byte_level(" Hello", " world", " Par", "is", " answer", " forty two", "the ")
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return fast_tokenizer(tokenizer_object=backend, eos_token="</s>", chat_template=CHAT)  # noqa: S106


@functools.cache
def student_tokenizer() -> Any:
    """SentencePiece-like BPE with byte fallback and dummy prefix; `<s>` stands before a text."""
    letters = [chr(letter) for letter in range(33, 127)]
    backend = sentencepiece_like("  ", " Hello", " Paris", " the", " ans", "wer", " is", " two", *letters)
    backend.add_special_tokens(["<s>"])
    begin = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return fast_tokenizer(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106 - no password
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        chat_template=CHAT,
    )


def llama(vocabulary: int, hidden: int, *, seed: int = 0, **options: Any) -> Any:
    """A random Llama of two layers in float64, with logits that are not all the same."""
    torch.manual_seed(seed)
    given = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **{**given, **options})).double()


def gpt2(vocabulary: int, hidden: int, *, seed: int = 0, **options: Any) -> Any:
    """A random GPT-2 of two layers in float64."""
    torch.manual_seed(seed)
    sizes = {"n_embd": hidden, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.3}
    given = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, **sizes}
    return GPT2LMHeadModel(GPT2Config(**{**given, **options})).double()


def two_teachers() -> dict[str, Any]:
    """Models of different vocabularies and widths, by name; see `TOKENIZERS`."""
    sizes = {"big": (HIDDEN["teacher"], 2), "other": (20, 3)}
    return {name: llama(len(TOKENIZERS[name]()), width, seed=seed) for name, (width, seed) in sizes.items()}


TOKENIZERS = {
    "teacher": teacher_tokenizer,
    "big": teacher_tokenizer,
    "other": other_tokenizer,
    "near": student_tokenizer,
}
"""Of teachers by their names."""

ONE_VOCABULARY = ("logits",)
"""Losses whose teacher has the student's tokenizer."""


def collator(teacher: Any, student: Any, **limits: Any) -> DistillationCollator:
    """A collator of two tokenizers of transformers."""
    sides = [Side(one, Vocabulary.from_tokenizer(one), **limits) for one in (teacher, student)]
    return collator_of(*sides)


EVERYTHING = Needs(pairs=True, chunks=True, positions=True)


def collator_of(teacher: Side, student: Side) -> DistillationCollator:
    """A collator of two sides, with all that a loss may ask for."""
    aligner = Aligner(teacher.vocabulary, student.vocabulary)
    return DistillationCollator(student, {"teacher": TeacherSide(teacher, aligner, EVERYTHING)})


UNGATED: dict[str, Any] = {
    "target": "projected",
    "columns": "all",
    "s2t_weight": 1.0,
    "centre": False,
    "refresh_every": 1,
}
"""Dual space as published without its gate, which has every term and both projectors."""


def options(folder: Path | str, **given: Any) -> DistillationConfig:
    """The options of a run whose steps are easy to say: SGD at one rate, nothing clipped, no gate."""
    usual = {
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 0.1,
        "projector_learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "dataloader_pin_memory": False,
    }
    objective = given.get("objective", "dual_space")
    known = {} if objective not in LOSSES else {**options_of(LOSSES[objective]), "preset": None}
    of_loss = {name: given.pop(name) for name in list(given) if name in known}
    if objective == "dual_space" and "preset" not in of_loss and "losses" not in given:
        of_loss = UNGATED | of_loss
    usual |= {"loss_options": of_loss} if of_loss else {}
    return DistillationConfig(output_dir=str(folder), **{**usual, **given})


def trainer(
    folder: Path | str,
    *,
    teacher: Any = None,
    student: Any = None,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    more: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    **given: Any,
) -> Any:
    """A trainer of tiny models, its projectors as wide; `more` is for it, the rest are options.

    A teacher is one, or several by name; without one it is that which the objective can listen to.
    """
    tokenizer = student_tokenizer()
    own = tokenizer if given.get("objective") in ONE_VOCABULARY else teacher_tokenizer()
    if teacher is None:
        teacher = llama(len(own), HIDDEN["teacher"], seed=2)
    several = isinstance(teacher, dict)
    for one in teacher.values() if several else [teacher]:
        one.to(dtype)
    usual = {
        "processing_class": tokenizer,
        "teacher_processing_class": {name: TOKENIZERS[name]() for name in teacher} if several else own,
        "train_dataset": list(rows),
    }
    made: Any = DistillationTrainer(
        (student or llama(len(tokenizer), HIDDEN["student"], seed=1)).to(dtype),
        teacher,
        options(folder, **given),
        **{**usual, **(more or {})},
    )
    if dtype == torch.float64:
        made.model.double()
    return made


def batch_of(made: Any, rows: Sequence[Mapping[str, Any]]) -> Collated:
    """What the trainer's collator makes of some rows."""
    batch: Collated = made.data_collator(rows)
    return batch


BESIDE = "objective.built.1."
"""What the second loss of an objective, that beside the cross-entropy, calls its parameters."""


def built_by(made: Any) -> Any:
    """What the loss beside the cross-entropy has built."""
    return made.model.objective.built["1"]


def teacher_of(made: Any) -> Any:
    """The only one."""
    return made.teachers["teacher"]


def sides_of(made: Any) -> tuple[Side, Side]:
    """The only teacher's, and the student's."""
    return made.data_collator.teachers["teacher"].side, made.data_collator.student


# ---- One step --------------------------------------------------------------------------------------------


def step(made: Any, *batches: Collated) -> tuple[float, dict[str, Tensor | None]]:
    """The loss and the gradients of one optimizer step over these micro-batches; no optimizer runs."""
    made.model.train()
    made.model.zero_grad()
    taken, items = made.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    loss = 0.0
    for batch in taken:
        one = made.compute_loss(made.model, batch, num_items_in_batch=items)
        one.backward()
        loss += float(one.detach())
    return loss, {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in made.model.named_parameters()
        if parameter.requires_grad
    }


def assert_same(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], *, relative: float
) -> None:
    """By name, up to a share of the largest of all; the largest is not nothing."""
    assert found.keys() == expected.keys()
    assert len(found) > 0
    largest = max(float(one.abs().max()) for one in expected.values() if one is not None)
    assert largest > 1e-3
    for name, one in expected.items():
        other = found[name]
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            gap = float((other.detach() - one.detach()).abs().max())
            assert gap <= relative * largest, (name, gap, largest)


# ---- What it must agree with -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """One side of a row, by hand: its ids, and where in them the response's tokens are, the end included.

    `straddles`: whether a token of the whole text lies across its beginning.
    """

    ids: list[int]
    first: int
    ends: bool
    straddles: bool = False

    @property
    def columns(self) -> list[int]:
        """Where the response's tokens are that something stands before."""
        return [column for column in range(self.first, len(self.ids)) if column]


def read(side: Side, row: Mapping[str, Any]) -> Reading:
    """A row of two strings, tokenised by the library of tokenizers itself, nothing cut.

    At once; where a token lies across the two, apart, the second without a space that the tokenizer adds.
    """
    backend, tokenizer = side.tokenizer.backend_tokenizer, side.tokenizer
    opening = [tokenizer.bos_token_id] if tokenizer.bos_token_id in tokenizer("")["input_ids"] else []
    prompt, completion = row["prompt"], row["completion"]
    ids = backend.encode(prompt + completion, add_special_tokens=False).ids
    added = side.vocabulary.dummy_prefix and bool(ids)
    ends = list(itertools.accumulate(len(side.vocabulary.token_bytes(token) or b"") for token in ids))
    behind = len(prompt.encode()) + added
    first = 0 if not prompt else next((index + 1 for index, end in enumerate(ends) if end == behind), None)
    straddles = first is None
    if first is None:
        before = backend.encode(prompt, add_special_tokens=False).ids
        ids, first = [*before, *_apart(side, completion)], len(before)
    first += len(opening)
    return Reading([*opening, *ids, tokenizer.eos_token_id], first, ends=True, straddles=straddles)


def _apart(side: Side, text: str) -> list[int]:
    """The ids that have the bytes of a text and no more."""
    backend = side.tokenizer.backend_tokenizer
    for before in ("", "\n"):
        ids: list[int] = backend.encode(before + text, add_special_tokens=False).ids
        for start in range(len(ids)):
            said = b"".join(side.vocabulary.token_bytes(token) or b"" for token in ids[start:])
            if said == text.encode():
                return ids[start:]
    return _apart(side, text[1:]) if text.startswith(" ") else ids


def token_pairs(
    sides: tuple[Side, Side], readings: tuple[Reading, Reading], completion: str
) -> list[tuple[int, int]]:
    """Columns of the tokens that have the same place in the completion's bytes, and of both ends of turn."""
    spans = [
        spans_of(side, reading, completion.encode()) for side, reading in zip(sides, readings, strict=True)
    ]
    found = {span: column for column, span in spans[0].items()}
    return [(found[span], column) for column, span in spans[1].items() if span in found]


def spans_of(side: Side, reading: Reading, text: bytes) -> dict[int, tuple[int, int]]:
    """For the columns of a response the bytes of its text that they are; what is none of it is left out."""
    tokens = [side.vocabulary.token_bytes(token) or b"" for token in reading.ids[reading.first :]]
    added = b"".join(tokens)[:1] == b" " != text[:1]
    start, spans = -int(added), {}
    for column, token in enumerate(tokens, start=reading.first):
        span = (max(start, 0), start + len(token))
        assert text[slice(*span)] == (token[1:] if start < 0 else token), (token, span, text)
        if span[0] < span[1]:
            spans[column] = span
        start += len(token)
    if reading.ends:
        spans[len(reading.ids) - 1] = (len(text), len(text))
    return spans


def overlap(teacher: Vocabulary, student: Vocabulary) -> list[tuple[int, int]]:
    """Ids of the tokens that both have, of several the one that is no byte fallback, and `</s>`."""
    first: list[dict[bytes, int]] = []
    for vocabulary in (teacher, student):
        named: dict[bytes, int] = {}
        for token in sorted(range(vocabulary.size), key=lambda token: (vocabulary.kind(token), token)):
            if known := vocabulary.token_bytes(token):
                named.setdefault(known, token)
        first.append(named)
    shared = [(first[0][known], first[1][known]) for known in first[0] if known in first[1]]
    ends = [next(token for token, roles in one.roles.items() if "eos" in roles) for one in (teacher, student)]
    return sorted([*shared, (ends[0], ends[1])])


def steps_logged(made: Any) -> list[dict[str, float]]:
    """The logs of a run that have a loss."""
    return [line for line in made.state.log_history if "loss" in line]
