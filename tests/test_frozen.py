"""The losses equal what they were: values and every gradient, stored as data in tests/frozen.

The data was made by the code of revision 312812c, by its definitions (`fused=False`), in float64 on the CPU;
numbers are stored with 12 digits. It is not made again: what it holds is that a loss written anew is still
the same loss.

* `inputs.json`: ids and numbers of one batch, as explicit tensors. Row 2 has no teacher positions, row 3 no
  student positions; position `teacher_paired[i]` of the teacher belongs to `paired[i]` of the student. Linear
  maps are as in `states @ map + bias`. A variant says what both heads do besides their product.
* `values.json`: cases by name, one a line. `options` are what differs from the preset, or from the defaults;
  `statistics` is the temperature of those that are kept of the teacher. `micro_batch` marks a case that
  divides by numbers of the micro-batch; its `reduction` counts that one batch alone, which is the whole step.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch
from torch.nn import functional

from dskd import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

FROZEN = Path(__file__).parent / "frozen"
INPUTS: dict[str, Any] = json.loads((FROZEN / "inputs.json").read_text())
CASES: dict[str, dict[str, Any]] = json.loads((FROZEN / "values.json").read_text())

Result: TypeAlias = "dict[str, Tensor]"
"""By name: the `loss`, `sum of ..`, `count of ..`, `gradient of ..`; of projectors `p_ts` and `p_st`."""


@pytest.mark.parametrize("fused", [False, True], ids=["definition", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_every_gradient_are_what_they_were(name: str, fused: bool) -> None:
    found = run_case(CASES[name], INPUTS, fused)
    expected = CASES[name]["expected"]
    frozen = {key: torch.tensor(value, dtype=torch.float64) for key, value in expected.items()}
    torch.testing.assert_close(found, frozen, rtol=1e-10, atol=1e-13)  # names what differs


# ---- The interface of today, and nothing else that knows it ----------------------------------------------

STUDENT = ("student_hidden", "student_weight", "student_bias")
NAMES = {
    "teacher_to_student": "p_ts",
    "teacher_to_student_bias": "p_ts_bias",
    "student_to_teacher": "p_st",
    "student_to_teacher_bias": "p_st_bias",
}
"""Of projectors, as the data names them."""


def run_case(case: dict[str, Any], inputs: dict[str, Any], fused: bool) -> Result:
    """What the library finds for a case."""
    return RUN[case["loss"]](case, Batch(inputs, case["variant"]), fused)


class Batch:
    """The tensors of the inputs, those of the student as leaves, and both heads of a variant."""

    def __init__(self, inputs: dict[str, Any], variant: str) -> None:
        self.networks = inputs["networks"]
        self._variant = inputs["variants"][variant]
        ids = inputs["ids"] | self._variant.get("ids", {})
        self._tensors = {name: torch.tensor(value, dtype=torch.int64) for name, value in ids.items()}
        for name, value in inputs["numbers"].items():
            self._tensors[name] = torch.tensor(value, dtype=torch.float64)
        for name in STUDENT:
            self[name].requires_grad_()

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def head(self, side: str) -> nn.Head:
        given = dict(self._variant[side])
        bias = self[f"{side}_bias"] if given.pop("bias", False) else None
        mask = torch.zeros(len(self[f"{side}_weight"]), dtype=torch.bool)
        mask[given.pop("unreachable", [])] = True
        return nn.Head(self[f"{side}_weight"], bias, unreachable=mask if mask.any() else None, **given)

    def aligned(self, temperature: float | None = None) -> nn.AlignedStates:
        hidden, head = self["teacher_hidden"][self["teacher_paired"]], self.head("teacher")
        return nn.AlignedStates(
            student_hidden=self["student_hidden"],
            labels=self["student_labels"],
            paired=self["paired"],
            teacher_hidden=hidden,
            teacher_head=head,
            student_head=self.head("student"),
            statistics=_statistics(head, hidden, temperature),
        )

    def attended(self, *, temperature: float | None, tied: bool) -> nn.AttendedStates:
        teacher, student = (
            nn.AttendedSide(
                row=self[f"{side}_row"],
                hidden=self[f"{side}_hidden"],
                inputs=self[f"{side}_inputs"],
                labels=self[f"{side}_labels"],
                embeddings=self[f"{side}_weight" if tied else f"{side}_embeddings"],
                head=self.head(side),
            )
            for side in ("teacher", "student")
        )
        known = _statistics(teacher.head, teacher.hidden, temperature)
        return nn.AttendedStates(teacher, student, known)

    def result(self, parts: nn.LossParts, trained: Mapping[str, Tensor]) -> Result:
        """Zeros are the gradient of what the loss does not depend on."""
        moved = {name: self[name] for name in STUDENT} | dict(trained)
        found = torch.autograd.grad(parts.loss, list(moved.values()), materialize_grads=True)
        result = {"loss": parts.loss.detach()}
        result |= {f"sum of {name}": value for name, value in parts.sums.items()}
        result |= {f"count of {name}": value.double() for name, value in parts.counts.items()}
        gradients = zip(moved, found, strict=True)
        return result | {f"gradient of {name}": gradient for name, gradient in gradients}


def _statistics(head: nn.Head, hidden: Tensor, temperature: float | None) -> nn.TeacherStatistics | None:
    return None if temperature is None else nn.teacher_statistics(head, hidden, temperature=temperature)


def _reduction(case: dict[str, Any]) -> nn.Reduction:
    return nn.Reduction(**case["reduction"])


def _cross_entropy(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    hidden, head, labels = batch["student_hidden"], batch.head("student"), batch["student_labels"]
    if fused:
        return batch.result(nn.fused_cross_entropy(hidden, head, labels, reduction=_reduction(case)), {})
    total = functional.cross_entropy(head.logits(hidden), labels, reduction="sum")
    terms = nn.TermSums({"cross_entropy": total})
    return batch.result(nn.weighted(terms, {"cross_entropy": _reduction(case).cross_entropy}), {})


def _shared_vocabulary(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    options = nn.SharedVocabularyOptions(**case["options"])
    loss = nn.SharedVocabularyLoss(batch["overlap"], options, fused=fused)
    return batch.result(loss(batch.aligned(), _reduction(case)), {})


def _dual_space(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    teacher, student = batch["teacher_weight"], batch["student_weight"]
    projectors = nn.Projectors(teacher, student, batch["overlap"], **case["projectors"]).double()
    with torch.no_grad():
        for name, tensor in projectors.state_dict().items():
            if name in NAMES:
                tensor.copy_(batch[NAMES[name]])
    maps = nn.VocabularyMaps(to_student=batch["to_student"], overlap=batch["overlap"])
    options = replace(_preset(case, nn.DualSpaceOptions()), **case["options"])
    loss = nn.DualSpaceLoss(projectors, maps, options, fused=fused)
    trained = {NAMES[name]: parameter for name, parameter in projectors.named_parameters()}
    return batch.result(loss(batch.aligned(case.get("statistics")), _reduction(case)), trained)


def _cross_model_attention(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    teacher_width, student_width = (batch[f"{side}_hidden"].shape[1] for side in ("teacher", "student"))
    projectors = nn.AttentionProjectors(teacher_width, student_width).double()
    trained = {}
    for name, layer in projectors.named_children():
        kept = NAMES.get(name, name)
        trained[kept] = batch[kept].requires_grad_()
        trained[f"{kept}_bias"] = batch[f"{kept}_bias"].requires_grad_()
        _put(layer, weight=trained[kept].T, bias=trained[f"{kept}_bias"])
    matching, networks = None, {}
    if (given := case.get("matching")) is not None:
        matching = nn.KeyQueryMatching(2 * teacher_width, **given).double()
        of_variant = batch.networks[given["variant"]]
        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in of_variant.items()}
        matching.networks.load_state_dict(numbers)
        networks = dict(matching.networks.named_parameters())
    options = replace(_preset(case, nn.CrossModelAttentionOptions()), **case["options"])
    scales = nn.AttentionScales(**case["scales"]) if "scales" in case else None
    loss = nn.CrossModelAttentionLoss(projectors, options, matching=matching, fused=fused)
    states = batch.attended(temperature=case.get("statistics"), tied=case.get("tied", False))
    found = batch.result(loss(states, _reduction(case), scales), trained | networks)
    for name in networks:
        gradient = found.pop(f"gradient of {name}").flatten()
        found[f"gradient of {name}: norm"] = gradient.norm()
        cosines = torch.arange(1, len(gradient) + 1, dtype=torch.float64).cos()
        found[f"gradient of {name}: by cosines"] = gradient @ cosines
    return found


def _put(layer: Any, **tensors: Tensor) -> None:
    """In place of parameters, so that what they are made of gets their gradients."""
    for name, tensor in tensors.items():
        delattr(layer, name)
        setattr(layer, name, tensor)


def _preset(case: dict[str, Any], default: Any) -> Any:
    return getattr(nn, case["preset"]) if "preset" in case else default


def _projectors(case: dict[str, Any], batch: Batch, _fused: bool) -> Result:
    """Solved in float64, in which a module begins only after `double`; there is one form of it."""
    teacher, student = batch["teacher_weight"], batch["student_weight"]
    given = {"teacher_to_student": "solved", "student_to_teacher": "solved", **case["options"]}
    if case.get("weighted"):
        given["weights"] = batch["frequencies"]
    solved = nn.Projectors(teacher, student, batch["overlap"], **given).double()
    if "observed" in case:
        solved.observe(batch["probability_sums"], case["observed"])
    solved.refresh(teacher, student)
    return {"p_ts": solved.teacher_to_student, "p_st": solved.student_to_teacher}


RUN: dict[str, Callable[[dict[str, Any], Batch, bool], Result]] = {
    "cross_entropy": _cross_entropy,
    "shared_vocabulary": _shared_vocabulary,
    "dual_space": _dual_space,
    "cross_model_attention": _cross_model_attention,
    "projectors": _projectors,
}
