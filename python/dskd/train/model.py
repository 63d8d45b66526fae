"""The one module that is trained: the student, and the objective with its projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dskd.nn.adapted import weight_of
from dskd.nn.batch import Batch
from dskd.nn.heads import Head
from dskd.nn.linear import refuse_sharded
from dskd.train.adapters import inside
from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.batch import Teacher
    from dskd.nn.objective import Objective
    from dskd.nn.reduction import LossParts, Reduction
    from dskd.train.collator import Collated
    from dskd.vocabulary import Vocabulary

__all__ = ["DistillationModel", "body_of", "head_of", "hidden_states"]


class DistillationModel(nn.Module):
    """A student and what it is distilled with, prepared, moved and optimised together.

    Losses are computed inside `forward`, where a sharded head is whole. Teachers stay outside.

    Args:
        student: a causal language model of transformers.
        head: its head, as it is before it is sharded.
        objective: what it is trained by.
    """

    accepts_loss_kwargs = False

    def __init__(self, student: Any, head: Head, objective: Objective) -> None:
        """See the class."""
        super().__init__()
        self.student = student
        self.objective = objective
        self._unreachable = head.unreachable

    @property
    def config(self) -> Any:
        """The student's configuration."""
        return self.student.config

    @property
    def device(self) -> torch.device:
        """Of the student."""
        found: torch.device = self.student.device
        return found

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """What the student generates, see transformers: for callbacks, which are given this model."""
        return self.student.generate(*arguments, **options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Of the student; as transformers calls it from 5.24 on."""
        self.student.activation_checkpointing_enable(**options)
        self._want_gradients_of_inputs()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Of the student."""
        self.student.gradient_checkpointing_enable(**options)
        self._want_gradients_of_inputs()

    def _want_gradients_of_inputs(self) -> None:
        """Behind frozen embeddings a checkpointed layer would have no input with a gradient, and get none."""
        if not any(one.requires_grad for one in self.student.get_input_embeddings().parameters()):
            self.student.enable_input_require_grads()

    def forward(
        self,
        collated: Collated,
        teachers: Mapping[str, Teacher],
        reduction: Reduction,
        *,
        step: int | None = None,
    ) -> LossParts:
        """The loss of a micro-batch.

        Args:
            collated: of `DistillationCollator`.
            teachers: where they speak to the student, `Places.of_teacher`.
            reduction: of the step.
            step: of the optimizer.

        Raises:
            TypeError: the student's head is sharded here: with FSDP2, shard this module, not its parts alone.
        """
        head = Head.of(self.student, self._unreachable)
        refuse_sharded(head)
        ids, mask = collated.student.input_ids, collated.student.attention_mask
        student = collated.places.of_student(
            hidden_states(self.student, ids, mask),
            head,
            inputs=ids,
            embeddings=weight_of(self.student.get_input_embeddings()),
        )
        parts: LossParts = self.objective(Batch(student, teachers), reduction, step=step)
        return parts


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """`[batch, columns, d]`: what the model's head is given, after its final norm.

    A model on another device than the ids is given them there, and its states are moved back: here, once.

    Raises:
        ValueError: the model's body says none.
    """
    there = _entrance(model, input_ids.device)
    body = body_of(model)
    outputs = body(input_ids=input_ids.to(there), attention_mask=attention_mask.to(there), use_cache=False)
    states: Tensor | None = getattr(outputs, "last_hidden_state", None)
    if states is None:
        raise ValueError(
            f"the body of {type(inside(model)).__name__}, {type(body).__name__}, says no last_hidden_state: "
            "not supported"
        )
    return states.to(input_ids.device)


def body_of(model: Any) -> Any:
    """The part of a causal language model between its ids and its head, with its adapters.

    It is `base_model` of transformers; a class that does not say which it is (Llama 4's, Mllama's) has one
    part that holds the input embeddings.

    Raises:
        ValueError: it has none, or several.
    """
    whole = inside(model)
    if whole.base_model is not whole:
        return whole.base_model
    embeddings = whole.get_input_embeddings()
    found = [
        part
        for part in whole.children()
        if part is not embeddings and any(one is embeddings for one in part.modules())
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(whole).__name__} hides its body: base_model is the model itself, and "
            f"{len(found)} of its parts hold the input embeddings. Name it in base_model_prefix"
        )
    return found[0]


def _entrance(model: Any, device: torch.device) -> torch.device:
    """Where the model takes its ids; of one whose parts are brought when they are called, here."""
    there: torch.device = next(model.get_input_embeddings().parameters()).device
    return device if there.type == "meta" else there


def head_of(model: Any, vocabulary: Vocabulary) -> Head:
    """The head of a model, checked: it makes of the model's states what the model makes of them.

    Args:
        model: a causal language model of transformers.
        vocabulary: of its tokenizer, with `size=model.config.vocab_size`; slots that the tokenizer does not
            define are unreachable.

    Returns:
        The head, on the device of the model's own.

    Raises:
        ValueError: the model has no linear head or no body, or its head is offloaded; or its logits are made
            in a way that `Head` does not know.
    """
    device = Head.of(model).weight.device
    if device.type == "meta":
        raise ValueError(
            f"the head of {type(inside(model)).__name__} is offloaded (device_map): keep it on a device, "
            "losses read it"
        )
    dead = [
        vocabulary.kind(token) == Kind.OPAQUE and token not in vocabulary.roles
        for token in range(vocabulary.size)
    ]
    head = Head.of(model, torch.tensor(dead, device=device) if any(dead) else None)
    ids = torch.arange(8, device=device)[None] % vocabulary.size
    was_training = model.training
    model.eval()
    with torch.no_grad():
        given = ids.to(_entrance(model, device))
        expected = model(input_ids=given, use_cache=False).logits[0].float().to(device)
        found = head.logits(hidden_states(model, ids, torch.ones_like(ids))[0])
    model.train(was_training)
    gap = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(torch.inf)
    if not gap <= 0.02 * expected.abs().max().clamp(min=1):
        raise ValueError(
            f"the logits of {type(inside(model)).__name__} are not those of a linear head on its last "
            "hidden state (with its configuration's logit_scale, logits_scaling, final_logit_softcapping): "
            "not supported"
        )
    return head
