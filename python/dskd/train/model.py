"""The one module that is trained: the student, and the loss with its projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from dskd.nn.heads import Head
from dskd.nn.positions import AlignedStates
from dskd.nn.reduction import TermSums
from dskd.train.collator import positions_of
from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.vocabulary import Vocabulary

__all__ = ["DistillationModel", "head_of", "hidden_states"]


class DistillationModel(nn.Module):
    """A student and what it is distilled with, prepared, moved and optimised together.

    Losses are computed inside `forward`, where a sharded head is whole.

    Args:
        student: a causal language model of transformers.
        student_head: its head.
        teacher_head: the teacher's; the teacher itself stays outside.
        loss: a module of `dskd.nn` over aligned states; None for cross-entropy alone.
    """

    accepts_loss_kwargs = False

    def __init__(self, student: Any, student_head: Head, teacher_head: Head, loss: nn.Module | None) -> None:
        """See the class."""
        super().__init__()
        self.student = student
        self.loss = loss
        self._unreachable = student_head.unreachable
        self.teacher_head = teacher_head

    @property
    def config(self) -> Any:
        """The student's configuration."""
        return self.student.config

    @property
    def projectors(self) -> nn.Module | None:
        """The projectors, where the loss has some."""
        return getattr(self.loss, "projectors", None)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Of the student."""
        self.student.gradient_checkpointing_enable(**options)

    def forward(
        self, batch: Mapping[str, Tensor], teacher_hidden: Tensor | None, *, refresh: bool = False
    ) -> tuple[Tensor, TermSums]:
        """The sums of a micro-batch: cross-entropy over the labels, and the loss's terms over the pairs.

        Args:
            batch: of `DistillationCollator`.
            teacher_hidden: `[pairs, D]`, the teacher's states at the pairs; None where there is no loss.
            refresh: whether the student's projector is solved again before.
        """
        positions = positions_of(batch)
        states = hidden_states(self.student, batch["student_input_ids"], batch["student_attention_mask"])
        supervised = positions.of_student(states)
        head = Head.of(self.student, self._unreachable)
        logits = head.logits(supervised)
        cross_entropy = functional.cross_entropy(logits, positions.labels, reduction="sum")
        if self.loss is None or teacher_hidden is None:
            return cross_entropy, TermSums({})
        if refresh and self.projectors is not None:
            self.projectors.refresh(self.teacher_head.weight, head.weight)  # type: ignore[operator]
        aligned = AlignedStates(
            teacher_hidden=teacher_hidden,
            student_hidden=supervised[positions.paired],
            student_logits=logits[positions.paired],
            labels=positions.labels[positions.paired],
            teacher_head=self.teacher_head,
            student_head=head,
        )
        return cross_entropy, self.loss(aligned)


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
