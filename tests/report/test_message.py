"""The failure text, made of violations built by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_evalmode.report.message import failure_text, rules_table
from pytest_evalmode.report.page_data import collect_page_data
from pytest_evalmode.rules import RULES, Violation
from pytest_evalmode.trace import Site, Trace

TRAINING = Violation(
    rule="train-mode",
    model="model",
    subjects=("model.bn1 (BatchNorm2d)", "model.drop (Dropout)"),
    message="model (ResNet) ran 40 times in training mode",
    finding="model.bn1 (BatchNorm2d) and 1 more of 149 modules were in training mode",
    remedy="call model.eval() before the first forward",
    at=Site("tests/test_accuracy.py", 31, "logits = model(images)"),
    count=40,
    train=("bn1",),
)
MUTATED = Violation(
    rule="state-mutated",
    model="model",
    subjects=("model.bn1.running_mean",),
    message="model.bn1.running_mean and 1 more changed",
    finding="model.bn1.running_mean and 1 more changed    max |Δ| 0.031, 64 of 64 elements",
    remedy="call model.eval(); list tensors that may change in mutable=[...]",
    at=Site("tests/test_accuracy.py", 31, "logits = model(images)"),
    mutable=("bn1.running_mean", "bn1.running_var"),
)
RANDOM = Violation(
    rule="random-forward",
    model="model",
    subjects=("model (ResNet)",),
    message="model drew random numbers",
    finding="model (ResNet) drew",
    remedy="pass training=self.training",
    at=Site("tests/test_accuracy.py", 31, "logits = model(images)"),
    cause=Site("src/net.py", 88, "x = F.dropout(x)"),
)
CONSEQUENCE = replace(MUTATED, because=("train-mode",))
FIXTURE = Site("tests/conftest.py", 12, "def model():")


def test_the_failure_text_as_a_whole() -> None:
    training = replace(TRAINING, fixture="model", fixture_at=FIXTURE)
    assert failure_text([training, CONSEQUENCE], "inference") == dedent("""\
        train-mode: model (ResNet) ran 40 times in training mode (+1 more)

          train-mode     model.bn1 (BatchNorm2d) and 1 more of 149 modules were in training mode
                         from fixture model: tests/conftest.py:12  def model():
                         tests/test_accuracy.py:31  logits = model(images)
          state-mutated  as a result, model.bn1.running_mean and 1 more changed    max |Δ| 0.031, 64 of 64 elements
                         fix: call model.eval() before the first forward

          intended? @pytest.mark.inference(train=["bn1"], mutable=["bn1.running_*"], reason="...")""")


def test_a_change_with_another_cause_is_a_separate_entry() -> None:
    assert failure_text([TRAINING, MUTATED]).count("fix: ") == 2
    elsewhere = replace(CONSEQUENCE, model="teacher", subjects=("teacher.bn1.running_mean",))
    assert failure_text([TRAINING, elsewhere]).count("fix: ") == 2
    assert failure_text([RANDOM, CONSEQUENCE]).count("fix: ") == 2


def test_blocks_of_a_list_with_the_same_fault_are_one_entry() -> None:
    blocks = [replace(RANDOM, model=f"net.blocks[{i}]", finding=f"net.blocks[{i}] drew") for i in range(5)]
    text = failure_text(blocks)
    assert text.count("fix: ") == text.count("src/net.py:88") == 1
    assert "net.blocks[0] drew" in text
    assert "and net.blocks[1] drew" in text
    assert "and 2 more like these" in text
    other = replace(blocks[1], at=Site("tests/test_accuracy.py", 40, "model(other)"))
    assert failure_text([blocks[0], other]).count("fix: ") == 2


def test_a_consequence_of_the_second_block_is_part_of_their_entry() -> None:
    blocks = [replace(TRAINING, model=name, subjects=(f"{name}.bn (BatchNorm2d)",)) for name in ("student", "teacher")]
    changed = replace(CONSEQUENCE, model="teacher", subjects=("teacher.bn.running_mean",))
    assert failure_text([*blocks, changed]).count("fix: ") == 1


def test_no_exemption_is_suggested_for_a_certain_mistake() -> None:
    assert "intended?" not in failure_text([replace(TRAINING, never_intended=True), CONSEQUENCE])
    assert failure_text([replace(TRAINING, never_intended=True), RANDOM]).endswith(
        'intended? guard(allow=["random-forward"])'
    )
    violations = [replace(TRAINING, never_intended=True), CONSEQUENCE]
    facts = collect_page_data(Trace(), violations, {}, "inference", Path())
    assert facts["exemption"] == ""  # and none in the HTML report


def test_notes_come_before_the_fix() -> None:
    note, fix = failure_text([replace(TRAINING, notes=("train is wrong",))]).splitlines()[-4:-2]
    assert (note.strip(), fix.strip()) == ("train is wrong", f"fix: {TRAINING.remedy}")


def test_the_headline_of_a_single_violation_counts_no_more() -> None:
    first, blank, *_ = failure_text([TRAINING], "inference").splitlines()
    assert (first, blank) == ("train-mode: model (ResNet) ran 40 times in training mode", "")


def test_the_last_forward_before_a_change_is_not_shown_as_the_line_at_fault() -> None:
    text = failure_text([replace(MUTATED, rule="buffer-mutated")], "inference")
    assert "first seen after the model's last forward: tests/test_accuracy.py:31\n" in text
    assert "logits = model(images)" not in text


def test_the_line_that_changed_a_tensor_is_shown_if_known() -> None:
    text = failure_text([replace(MUTATED, since=Site("tests/test_accuracy.py", 29, "model.half()"))], "inference")
    assert "since tests/test_accuracy.py:29  model.half()\n" in text
    assert "first seen" not in text


def test_a_line_that_switched_the_mode_and_called_the_model_is_shown_once() -> None:
    assert "since" not in failure_text([replace(TRAINING, since=TRAINING.at)], "inference")


def test_the_line_that_switched_the_mode_comes_before_the_call() -> None:
    text = failure_text([replace(TRAINING, since=Site("tests/helpers.py", 12, "model.train()"))], "inference")
    assert text.splitlines()[2:5] == [
        "  train-mode  model.bn1 (BatchNorm2d) and 1 more of 149 modules were in training mode",
        "              since tests/helpers.py:12  model.train()",
        "              tests/test_accuracy.py:31  logits = model(images)",
    ]


def test_the_line_at_fault_inside_the_model_comes_after_the_call() -> None:
    text = failure_text([RANDOM], "inference")
    assert "tests/test_accuracy.py:31  logits = model(images)" in text
    assert "src/net.py:88  x = F.dropout(x)" in text
    assert text.index("test_accuracy.py:31") < text.index("src/net.py:88")


@pytest.mark.parametrize("cause", [None, RANDOM.at])
def test_a_line_is_shown_once(cause: Site | None) -> None:
    assert failure_text([replace(RANDOM, cause=cause)], "inference").count("test_accuracy.py:31") == 1


def test_a_violation_without_a_line_shows_none() -> None:
    finding, fix = failure_text([replace(RANDOM, at=None, cause=None)], "inference").splitlines()[2:4]
    assert finding.split() == ["random-forward", *RANDOM.finding.split()]
    assert fix.strip() == "fix: pass training=self.training"


@pytest.mark.parametrize(
    ("violations", "intended"),
    [
        ([TRAINING], 'train=["bn1"]'),
        ([replace(TRAINING, train=("bn1", "drop"))], 'train=["bn1", "drop"]'),
        ([replace(TRAINING, train=("a.b", "a.c"))], 'train=["a.b", "a.c"]'),
        ([replace(TRAINING, train=tuple("abcd"))], 'train=["*"]'),
        ([replace(TRAINING, train=("",))], 'allow=["train-mode"]'),  # no glob matches the model itself
        ([MUTATED], 'mutable=["bn1.running_*"]'),
        ([replace(MUTATED, mutable=("fc.bias",))], 'mutable=["fc.bias"]'),
        ([RANDOM], 'allow=["random-forward"]'),
        ([RANDOM, RANDOM], 'allow=["random-forward"]'),
        ([RANDOM, TRAINING, MUTATED], 'allow=["random-forward"], train=["bn1"], mutable=["bn1.running_*"]'),
    ],
)
def test_the_suggested_exemption_is_the_narrowest(violations: list[Violation], intended: str) -> None:
    last = failure_text(violations, "clean").splitlines()[-1]
    assert last == f'  intended? @pytest.mark.clean({intended}, reason="...")'


def test_without_a_marker_the_arguments_of_guard_are_suggested() -> None:
    assert failure_text([TRAINING]).splitlines()[-1] == '  intended? guard(train=["bn1"])'


def test_the_table_of_rules_has_each_rule_once_with_its_level_and_fix() -> None:
    entries = rules_table().split("\n\n")
    assert [entry.partition(" ")[0] for entry in entries] == [rule.name for rule in RULES]
    for entry, rule in zip(entries, RULES, strict=True):
        assert entry == f"{rule.name} ({rule.level})\n  fires when {rule.fires_when}\n  fix: {rule.remedy}"
