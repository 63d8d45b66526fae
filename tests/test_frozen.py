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

One case of then is gone: a solved P_ts that nobody asks for, which is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch

from dskd import nn
from dskd.nn.losses.cross_model_attention import Attending

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

    def teacher_model(self, *, tied: bool = False) -> nn.TeacherModel:
        maps = nn.VocabularyMaps(to_student=self["to_student"], overlap=self["overlap"])
        embeddings = self["teacher_weight" if tied else "teacher_embeddings"]
        return nn.TeacherModel(self.head("teacher"), maps, embeddings)

    def states(self, side: str, *, tied: bool = False, temperature: float | None = None) -> nn.States:
        head = self.head(side)
        return nn.States(
            self[f"{side}_hidden"],
            self[f"{side}_labels"],
            head,
            row=self[f"{side}_row"],
            inputs=self[f"{side}_inputs"],
            embeddings=self[f"{side}_weight" if tied else f"{side}_embeddings"],
            statistics=_statistics(head, self[f"{side}_hidden"], temperature),
            name="labels" if side == "student" else "teacher_labels",
        )

    def given(self, temperature: float | None = None, *, tied: bool = False, scales: Any = None) -> nn.Batch:
        model = self.teacher_model(tied=tied)
        hidden = self["teacher_hidden"][self["teacher_paired"]]
        known = _statistics(model.head, hidden, temperature)
        of_teacher = self.states("teacher", tied=tied, temperature=temperature)
        teacher = nn.Teacher(model, hidden, self["paired"], known, states=of_teacher, scales=scales)
        return nn.Batch(self.states("student", tied=tied), {"teacher": teacher})

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


def _loss(case: dict[str, Any], batch: Batch, loss: nn.Loss, fused: bool) -> nn.Objective:
    """Beside the cross-entropy, whose share is `1 - alpha`."""
    alpha = case["reduction"].get("alpha", 0.5)
    losses = [nn.Weighted(nn.CrossEntropy(), 1 - alpha), nn.Weighted(loss, alpha)]
    model = batch.teacher_model(tied=case.get("tied", False))
    return nn.Objective(losses, batch.head("student"), model, fused=fused).double()


def _reduction(case: dict[str, Any]) -> nn.Reduction:
    names = ("labels", "pairs", "teacher_labels")
    return nn.Reduction({name: case["reduction"].get(name, 0) for name in names})


def _cross_entropy(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    share = 1 - case["reduction"].get("alpha", 0.5)
    loss = nn.Objective([nn.Weighted(nn.CrossEntropy(), share)], batch.head("student"), fused=fused)
    return batch.result(loss(batch.given(), _reduction(case)), {})


def _shared_vocabulary(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    options = dict(case["options"])
    top_k = options.pop("top_k", None)
    if top_k is None:
        loss = _loss(case, batch, nn.SharedVocabulary(**options), fused)
        return batch.result(loss(batch.given(), _reduction(case)), {})
    given: dict[str, Any] = {"divergence": "kl", **options}
    few = nn.StrictTopK(**given, top_k=top_k, strict=False, specials=True)
    found = batch.result(_loss(case, batch, few, fused)(batch.given(), _reduction(case)), {})
    found["sum of shared_kd"] = found.pop("sum of strict_kd")
    del found["count of strict"]  # all of them
    return found


def _dual_space(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    options = {**_preset(case, nn.DualSpace), **_PROJECTORS, **case["options"], **case["projectors"]}
    loss = _loss(case, batch, nn.DualSpace(**options), fused).eval()  # nothing is solved again
    (projectors,) = loss.built.values()
    with torch.no_grad():
        for name, tensor in projectors.state_dict().items():
            if name in NAMES:
                tensor.copy_(batch[NAMES[name]])
    trained = {NAMES[name]: one.requires_grad_() for name, one in projectors.named_parameters()}
    return batch.result(loss(batch.given(case.get("statistics")), _reduction(case)), trained)


_PROJECTORS = {"student_to_teacher": "solved", "initial": "solved", "bias": False}
"""Whatever a preset says; a case says its own."""


def _cross_model_attention(case: dict[str, Any], batch: Batch, fused: bool) -> Result:
    given = case.get("matching") or {}
    options = {**_preset(case, nn.CrossModelAttention), **case["options"]}
    options |= {"matching": given.get("variant"), "kq_rate": given.get("rate", 0.01)}
    loss = _loss(case, batch, nn.CrossModelAttention(**options), fused)
    (built,) = loss.built.values()
    assert isinstance(built, Attending)
    trained = {}
    for name, layer in built.projectors.named_children():
        kept = NAMES.get(name, name)
        trained[kept] = batch[kept].requires_grad_()
        trained[f"{kept}_bias"] = batch[f"{kept}_bias"].requires_grad_()
        _put(layer, weight=trained[kept].T, bias=trained[f"{kept}_bias"])
    networks = {}
    if given:
        built.matching = _matching(given, batch)
        networks = dict(built.matching.networks.named_parameters())
    scales = nn.AttentionScales(**case["scales"]) if "scales" in case else None
    states = batch.given(case.get("statistics"), tied=case.get("tied", False), scales=scales)
    found = batch.result(loss(states, _reduction(case)), trained | networks)
    for name in networks:
        gradient = found.pop(f"gradient of {name}").flatten()
        found[f"gradient of {name}: norm"] = gradient.norm()
        cosines = torch.arange(1, len(gradient) + 1, dtype=torch.float64).cos()
        found[f"gradient of {name}: by cosines"] = gradient @ cosines
    return found


def _matching(given: dict[str, Any], batch: Batch) -> nn.KeyQueryMatching:
    """The networks as they are stored."""
    matching = nn.KeyQueryMatching(2 * batch["teacher_hidden"].shape[1], **given).double()
    of_variant = batch.networks[given["variant"]]
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in of_variant.items()}
    matching.networks.load_state_dict(numbers)
    return matching


def _put(layer: Any, **tensors: Tensor) -> None:
    """In place of parameters, so that what they are made of gets their gradients."""
    for name, tensor in tensors.items():
        delattr(layer, name)
        setattr(layer, name, tensor)


_PRESETS = {"DSKD_V1_ATTENTION": "dskd_v1", "DSKD_V2_ATTENTION": "dskd_v2"}
"""As the data names them, where that is not their name in capitals."""


def _preset(case: dict[str, Any], loss: type[nn.Loss]) -> Mapping[str, Any]:
    if "preset" not in case:
        return {}
    return loss.presets[_PRESETS.get(case["preset"], case["preset"].lower())]


def _projectors(case: dict[str, Any], batch: Batch, _fused: bool) -> Result:
    """Solved in float64, in which a module begins only after `double`; there is one form of it."""
    given = {"teacher_to_student": "solved", "student_to_teacher": "solved", **case["options"]}
    if case.get("weighted"):
        given["weights"] = batch["frequencies"]
    student, teacher = batch["student_weight"], batch["teacher_weight"]
    solved = nn.Projectors(
        student_weight=student, teacher_weight=teacher, overlap=batch["overlap"], **given
    ).double()
    if "observed" in case:
        solved.observe(batch["probability_sums"], case["observed"])
    solved.refresh(student_weight=student, teacher_weight=teacher)
    return {"p_ts": solved.teacher_to_student, "p_st": solved.student_to_teacher}


RUN: dict[str, Callable[[dict[str, Any], Batch, bool], Result]] = {
    "cross_entropy": _cross_entropy,
    "shared_vocabulary": _shared_vocabulary,
    "dual_space": _dual_space,
    "cross_model_attention": _cross_model_attention,
    "projectors": _projectors,
}
