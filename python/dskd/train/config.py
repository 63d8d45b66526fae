"""What a run is told: the options of distillation, and those of `dskd-train`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import TrainingArguments

from dskd.nn.losses import (
    DSKD_UNGATED,
    DSKD_V1,
    DSKD_V1_ATTENTION,
    DSKD_V2,
    DSKD_V2_ATTENTION,
    DSKD_V2_SAME_VOCABULARY,
    CrossModelAttentionOptions,
    DualSpaceOptions,
    SharedVocabularyOptions,
)

__all__ = ["DistillationConfig", "ScriptArguments"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DistillationConfig(TrainingArguments):
    """`transformers.TrainingArguments`, and how to distill.

    Raises:
        ValueError: an option is out of its range.
    """

    objective: Literal["dual_space", "cross_model_attention", "shared_vocabulary", "sft"] = _option(
        "dual_space",
        "Dual-space distillation over exact pairs, or over what attention between the models finds; KL on "
        "the shared vocabulary; or cross-entropy alone.",
    )
    alpha: float = _option(0.5, "The share of distillation; 1 - alpha is the share of the cross-entropy.")
    divergence: Literal["kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "adaptive_kl", "tvd"] = (
        _option("kl", "Of the student's distribution from the teacher's.")
    )
    mix: float | None = _option(
        None, "Of the divergence: beta of js, lambda of the skewed ones, the threshold of adaptive_kl."
    )
    temperature: float = _option(1.0, "Of teacher and student alike in the divergences.")
    preset: Literal["none", "dskd_ungated", "dskd_v1", "dskd_v2", "dskd_v2_same_vocabulary"] = _option(
        "none",
        "Dual space, cross-model attention: as published, normalisers included (dskd_ungated: but for the "
        "gate, over the pairs of the step); the options of either below are its own, matching excepted.",
    )
    gate: Literal["prediction", "gold", "none"] = _option(
        "none",
        "Dual space: run t2s_kd only where the projected teacher says its own prediction, or the gold token. "
        "Cross-model attention: only the gold token (published), or none.",
    )
    spaces: Literal["both", "student", "teacher"] = _option("both", "Dual space: which of the two spaces.")
    t2s_target: Literal["prediction", "gold", "distribution"] = _option(
        "prediction",
        "Dual space: what trains the teacher's projector: a label, or the teacher's distribution on the "
        "shared vocabulary.",
    )
    target: Literal["projected", "exact"] = _option(
        "exact",
        "Dual space: what t2s_kd comes near: the projected teacher, or its own logits on shared ids.",
    )
    columns: Literal["all", "overlap"] = _option(
        "overlap", "Dual space: compare in t2s_kd all ids, or those of the shared vocabulary."
    )
    s2t_columns: Literal["all", "overlap"] = _option("all", "Dual space: the same in s2t_kd.")
    s2t_weight: float = _option(0.25, "Dual space: what s2t_kd is multiplied with.")
    teacher_to_student: Literal["trained", "solved"] = _option(
        "trained", "Dual space: whether the teacher's projector is trained, or follows the student's head."
    )
    student_to_teacher: Literal["solved", "trained"] = _option(
        "solved", "Dual space: whether the student's projector follows its head, or is trained."
    )
    centre: bool = _option(
        True, "Dual space: solve projectors on centred heads, since what all logits have more says nothing."
    )
    refresh_every: int = _option(5, "Dual space: steps between two solutions of a solved projector.")
    projector_learning_rate: float = _option(
        5e-4, "Of the projectors, and of all that is trained beside the student, without weight decay."
    )
    added: Literal["gold", "prediction", "none"] = _option(
        "gold",
        "Cross-model attention: the token whose embedding is added to the teacher's state: the gold one "
        "(dskd_v1), its own prediction (dskd_v2), or none.",
    )
    matching: Literal["none", "adversarial", "transport"] = _option(
        "none",
        "Cross-model attention: bring queries near keys, against a discriminator or by what transport costs.",
    )
    kq_rate: float = _option(0.01, "Cross-model attention: the weight of matching.")
    top_k: int | None = _option(
        None, "Shared vocabulary: only the student's top-k shared tokens at each pair."
    )
    max_prompt_length: int = _option(512, "Tokens of a prompt, on each side; its beginning is cut off.")
    max_response_length: int = _option(512, "Tokens of a response, on each side; its end is cut off.")

    def __post_init__(self) -> None:
        """Checks the options, and sets those of transformers that have only one right value here."""
        # The collator needs the text; the NaN filter would show a broken loss as 0.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # PyTorch warns of what has no use there
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; it is a share, from 0 to 1")
        self._refuse_what_does_not_fit()
        self.shared_vocabulary_options()
        if self._attends:
            self.cross_model_attention_options()
        else:
            self.dual_space_options()
            self.projector_options()
        if not 0 <= self.kq_rate < math.inf:
            raise ValueError(f"kq_rate={self.kq_rate}; it is a weight, from 0")
        for name in ("refresh_every", "max_prompt_length", "max_response_length"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value}; it is at least 1")

    @property
    def _attends(self) -> bool:
        return self.objective == "cross_model_attention"

    @property
    def _comparison(self) -> dict[str, Any]:
        """What the options of all losses have in common."""
        return {"divergence": self.divergence, "mix": self.mix, "temperature": self.temperature}

    def _refuse_what_does_not_fit(self) -> None:
        """Options that would not be looked at, where one could believe they were."""
        attends = self._attends
        if self.objective == "dual_space" and self.preset != "none":
            self._refuse_beside_a_preset()
        for name in _OF_PAIRS if attends else _OF_ATTENTION:
            value, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != usual:
                raise ValueError(
                    f"{name}={value!r} is none of the options of objective={self.objective!r}: leave it out"
                    + ("" if attends else ", or set objective='cross_model_attention'")
                )
        if attends and self.gate == "prediction":
            raise ValueError(
                "gate='prediction' needs the teacher's prediction in the student's vocabulary, and "
                "objective='cross_model_attention' has no map of vocabularies: 'gold', or 'none'"
            )
        if attends and self.preset not in ("none", *_ATTENTION_PRESETS):
            raise ValueError(
                f"preset={self.preset!r} is of objective='dual_space'; cross_model_attention has "
                f"{' and '.join(_ATTENTION_PRESETS)}"
            )

    def _refuse_beside_a_preset(self) -> None:
        """What a preset says itself."""
        for name in _OF_DUAL_SPACE:
            value, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != usual:
                raise ValueError(
                    f"{name}={value!r} beside preset={self.preset!r}, which has its own: leave one out"
                )

    def cross_model_attention_options(self) -> CrossModelAttentionOptions:
        """What the options say of cross-model attention.

        Raises:
            ValueError: one is out of its range.
        """
        if self.preset != "none":
            return replace(_ATTENTION_PRESETS[self.preset], **self._comparison)
        return CrossModelAttentionOptions(
            **self._comparison,
            gate=None if self.gate == "none" else "gold",
            added=None if self.added == "none" else self.added,
        )

    def dual_space_options(self) -> DualSpaceOptions:
        """What the options say of dual space.

        Raises:
            ValueError: one is out of its range, or two do not go together.
        """
        if self.preset != "none":
            return replace(_PRESETS[self.preset], **self._comparison)
        return DualSpaceOptions(
            **self._comparison,
            gate=None if self.gate == "none" else self.gate,
            spaces=self.spaces,
            t2s_target=self.t2s_target,
            target=self.target,
            columns=self.columns,
            s2t_columns=self.s2t_columns,
            s2t_weight=self.s2t_weight,
        )

    @property
    def steps_between_solutions(self) -> int:
        """Of solved projectors; as published at every step, where a preset is."""
        return self.refresh_every if self.preset == "none" else 1

    def projector_options(self) -> dict[str, Any]:
        """How `Projectors` begin and which of them are trained; as published, where there is a preset.

        Raises:
            ValueError: P_ts is to follow the student's head, and nobody asks for it.
        """
        if self.preset == "dskd_v1":
            return {"student_to_teacher": "trained", "initial": "random", "bias": True, "centre": False}
        if self.preset != "none":
            return {"centre": False}
        options = self.dual_space_options()
        if self.teacher_to_student == "solved" and not options.projects:
            raise ValueError(
                "teacher_to_student='solved' is of the projected teacher, and with target='exact' and no "
                "gate, or with spaces='teacher', there is none: set target='projected' and spaces='both', or "
                "leave teacher_to_student out"
            )
        return {
            "teacher_to_student": self.teacher_to_student,
            "student_to_teacher": self.student_to_teacher,
            "centre": self.centre,
        }

    def shared_vocabulary_options(self) -> SharedVocabularyOptions:
        """What the options say of the shared vocabulary.

        Raises:
            ValueError: one is out of its range.
        """
        return SharedVocabularyOptions(**self._comparison, top_k=self.top_k)


_PRESETS = {
    "dskd_ungated": DSKD_UNGATED,
    "dskd_v1": DSKD_V1,
    "dskd_v2": DSKD_V2,
    "dskd_v2_same_vocabulary": DSKD_V2_SAME_VOCABULARY,
}

_ATTENTION_PRESETS = {"dskd_v1": DSKD_V1_ATTENTION, "dskd_v2": DSKD_V2_ATTENTION}

_OF_ATTENTION = ("added", "matching", "kq_rate")

_OF_PROJECTION = (
    "spaces",
    "t2s_target",
    "target",
    "columns",
    "s2t_columns",
    "s2t_weight",
    "teacher_to_student",
    "student_to_teacher",
    "centre",
    "refresh_every",
)

_OF_DUAL_SPACE = ("gate", *_OF_PROJECTION)

_OF_PAIRS = (*_OF_PROJECTION, "top_k")


@dataclass
class ScriptArguments:
    """What `dskd-train` is told besides: which models and which data."""

    teacher: str = _option("", "A causal language model: a hub name or a folder.")
    student: str = _option("", "The model to train: a hub name or a folder.")
    train_data: str = _option(
        "", "Rows with prompt and completion: a JSON lines or Parquet file, or a data set's name."
    )
    eval_data: str | None = _option(None, "The same for evaluation.")
    teacher_roles: dict[str, Any] | str | None = _option(  # noqa: RUF009 - a field
        None, 'Roles that the teacher\'s tokenizer does not name, as JSON: {"<|endoftext|>": ["eos"]}.'
    )
    student_roles: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None, "The same for the student's tokenizer."
    )
    student_tokenizer: str | None = _option(
        None, "Give the student this tokenizer first, its embeddings carried over by token bytes."
    )
    student_layers: list[int] | None = _option(  # noqa: RUF009
        None, "Keep only these layers of the student first."
    )

    def __post_init__(self) -> None:
        """Reads the roles, which the command line gives as JSON.

        Raises:
            ValueError: a model or the data is not named, or roles are no JSON.
        """
        for name in ("teacher", "student", "train_data"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given: --{name}, or a line {name}: in the file of --config")
        self.roles_of_teacher = _roles("teacher_roles", self.teacher_roles)
        self.roles_of_student = _roles("student_roles", self.student_roles)


def _roles(name: str, given: dict[str, Any] | str | None) -> dict[str, set[str]]:
    if isinstance(given, str):
        try:
            return _roles(name, json.loads(given))
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}={given!r} is no JSON: {error}") from error
    return {token: set(names) for token, names in (given or {}).items()}
