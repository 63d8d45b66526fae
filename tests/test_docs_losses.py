"""The loss that docs/losses.md ends with: its code runs, and it is a loss like those of the library."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from both_forms import HEADS, assert_fused_is_whole, read_by_identity, small
from dskd.nn import LOSSES, Batch, Objective, States, Teacher, TeacherModel, VocabularyMaps, Weighted
from rounding import ON_PAPER

PAGE = Path(__file__).parent.parent / "docs" / "losses.md"
SECTION = "## Your own loss in thirty lines"


@cache
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@cache
def code() -> str:
    """The only block of the section that ends the page."""
    section = page().split(SECTION)[1]
    assert "\n## " not in section
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    return str(block)


@cache
def names() -> dict[str, Any]:
    """What running it leaves."""
    made: dict[str, Any] = {"__name__": "of_a_stranger"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code(), str(PAGE), "exec", dont_inherit=True), made)  # noqa: S102 - our own page
    return made


def test_the_loss_has_thirty_lines() -> None:
    loss = re.search(r"^@dataclass.*?(?=^# Trained)", code(), flags=re.DOTALL | re.MULTILINE)
    assert loss is not None
    assert 20 <= len(loss[0].rstrip().splitlines()) <= 30


def test_its_two_steps_lower_the_loss() -> None:
    """The block takes them itself, by a small rate along the gradient of the whole batch."""
    made = names()
    last = made["parts"].loss.item()
    states = States(made["hidden"], made["labels"], made["student_head"])
    after = made["objective"](Batch(states, made["batch"].teachers)).loss.item()
    assert after < last


def test_it_is_in_no_list() -> None:
    assert names()["SureKL"] not in LOSSES.values()


@pytest.mark.parametrize("heads", HEADS)
def test_fused_is_whole(heads: str) -> None:
    loss = names()["SureKL"]
    assert_fused_is_whole([loss(), Weighted(loss(power=0.0), 0.25)], small(**HEADS[heads]))


def test_a_pair_counts_by_how_sure_the_teacher_is() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 KL = 3/4 (3/4 log(3/2) + 1/4 log(1/2)).
    hidden, of_teacher = read_by_identity([[3, 1]])
    states, head = read_by_identity([[1, 1]])
    maps = VocabularyMaps(to_student=torch.arange(2), overlap=torch.tensor([[0, 0], [1, 1]]))
    model = TeacherModel(of_teacher, maps)
    only = torch.zeros(1, dtype=torch.int64)
    batch = Batch(States(states.requires_grad_(), only, head), {"teacher": Teacher(model, hidden, only)})
    parts = Objective([names()["SureKL"]()], head, model)(batch)
    p, q = torch.tensor([3 / 4, 1 / 4]).double(), 1 / 2
    assert parts.loss.item() == pytest.approx(float(3 / 4 * (p * (p / q).log()).sum()), rel=ON_PAPER)
    assert int(parts.counts["sure"]) == 1


def test_its_options_are_checked() -> None:
    with pytest.raises(ValueError, match="power=-1; it is a number from 0 on"):
        names()["SureKL"](power=-1)


# ---- The page --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_on_the_page(name: str) -> None:
    anchor = re.search(
        rf"^\| \[`{name}`\]\(#([a-z-]+)\) \| `{LOSSES[name].__name__}` \|", page(), flags=re.MULTILINE
    )
    assert anchor is not None
    headings = re.findall(r"^## (.*)$", page(), flags=re.MULTILINE)
    assert anchor[1] in [heading.lower().replace(" ", "-") for heading in headings]


def test_every_option_that_the_page_spells_out_is_one() -> None:
    """In the lists that it gives for a file of options."""
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for entry in (entry for block in blocks for entry in yaml.safe_load(block)["losses"]):
        options = {name: one for name, one in entry.items() if name not in ("loss", "weight", "teacher")}
        Weighted(LOSSES[entry["loss"]](**options), entry.get("weight", 1.0))
