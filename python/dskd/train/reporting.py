"""What a run leaves to read: its metrics as JSON lines, and its curve as a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["MetricsFile", "draw_curve"]


class MetricsFile(TrainerCallback):
    """Appends every log of a trainer to a file, a JSON object a line, with its step.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        """See the class."""
        self.path = path

    def on_log(
        self,
        args: Any,  # noqa: ARG002 - the signature of TrainerCallback
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Writes one line, on the main process."""
        if state.is_world_process_zero and logs is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def draw_curve(metrics: Path, picture: Path, terms: Iterable[str]) -> None:
    """Draws the loss, its terms and what was evaluated, from a file of `MetricsFile`, as PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    drawn = ("loss", *terms, "eval_bits_per_byte")
    names = [name for name in drawn if any(name in line for line in lines)]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=name, marker="o" if name.startswith("eval") else "")
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token; evaluation in bits a byte")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
