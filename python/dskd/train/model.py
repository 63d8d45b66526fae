"""The one module that is trained: the student, and the objective with its projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dskd.nn.batch import Batch
from dskd.nn.heads import Head
from dskd.nn.linear import refuse_sharded
from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.batch import Teacher
    from dskd.nn.objective import Objective
    from dskd.nn.reduction import LossParts, Reduction
    from dskd.train.collator import Collated
    from dskd.vocabulary import Vocabulary

__all__ = ["DistillationModel", "head_of", "hidden_states"]


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

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Of the student."""
        self.student.gradient_checkpointing_enable(**options)

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
            embeddings=self.student.get_input_embeddings().weight,
        )
        parts: LossParts = self.objective(Batch(student, teachers), reduction, step=step)
        return parts


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """`[batch, columns, d]`: what the model's head is given, after its final norm."""
    outputs = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states: Tensor = outputs.last_hidden_state
    return states


def head_of(model: Any, vocabulary: Vocabulary) -> Head:
    """The head of a model, checked: it makes of the model's states what the model makes of them.

    Args:
        model: a causal language model of transformers.
        vocabulary: of its tokenizer, with `size=model.config.vocab_size`; slots that the tokenizer does not
            define are unreachable.

    Raises:
        ValueError: the model's logits are made in a way that `Head` does not know.
    """
    device = model.get_output_embeddings().weight.device
    dead = [
        vocabulary.kind(token) == Kind.OPAQUE and token not in vocabulary.roles
        for token in range(vocabulary.size)
    ]
    head = Head.of(model, torch.tensor(dead, device=device) if any(dead) else None)
    ids = torch.arange(8, device=device)[None] % vocabulary.size
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        found = head.logits(hidden_states(model, ids, torch.ones_like(ids))[0])
    model.train(was_training)
    gap = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(torch.inf)
    if not gap <= 0.02 * expected.abs().max().clamp(min=1):
        raise ValueError(
            f"the logits of {type(model).__name__} are not those of a linear head on its last hidden state "
            "(with its configuration's logit_scale, logits_scaling, final_logit_softcapping): not supported"
        )
    return head
