"""The examples do what the README says of them: one suite is clean, and every mistake of the other is diagnosed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits"


@dataclass(frozen=True)
class Run:
    """What a run of pytest said, and what its report holds."""

    output: str
    tests: dict[str, dict[str, Any]]
    totals: dict[str, int]


def run(suite: str, folder: Path, *options: str) -> Run:
    """Run a suite of the example as someone who has copied its folder would: without this repository's settings."""
    report = folder / "report.json"
    alone = ["-c", os.devnull, f"--rootdir={DIGITS}", "-pno:randomly", "-pno:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *alone, f"--evalmode-report={report}", *options, suite]
    done = subprocess.run(command, cwd=DIGITS, capture_output=True, text=True, check=False)
    found = json.loads(report.read_text(encoding="utf-8"))
    return Run(done.stdout, {test["nodeid"].partition("::")[2]: test for test in found["tests"]}, found["totals"])


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run("test_mistakes.py", tmp_path_factory.mktemp("mistakes"))


def line(file: str, function: str, text: str) -> str:
    """Where the first line with this text stands in a function, as a report names it."""
    lines = (DIGITS / file).read_text(encoding="utf-8").splitlines()
    begin = next(number for number, content in enumerate(lines) if f"def {function}(" in content)
    return next(f"{file}:{number}" for number, content in enumerate(lines[begin:], begin + 1) if text in content)


MODES = {".dropout (Dropout)", ".features.1 (BatchNorm2d)", ".features.5 (BatchNorm2d)"}
STATISTICS = {
    f".features.{i}.{name}" for i in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")
}
LAYERS = ("features.0", "features.1", "features.4", "features.5", "head")
PARAMETERS = {f".{layer}.{name}" for layer in LAYERS for name in ("weight", "bias")}

FADED = line("test_mistakes.py", "faded_accuracy", "model(images")
CONFIDENCE = line("test_mistakes.py", "mean_confidence", "# the mistake")
RESTORED = line("test_mistakes.py", "test_restored_model", "restored(images)")
PREDICT = line("test_mistakes.py", "test_functional_dropout", "predict(functional")
VALIDATION = line("test_mistakes.py", "validation_loss", "model(images)")
ONE_SUBMODULE = line("test_mistakes.py", "test_one_submodule", "restored(images)")
DROPOUT = line("digits.py", "forward", "self.dropout(")
FUNCTIONAL_DROPOUT = line("test_mistakes.py", "forward", "# the mistake")


@pytest.mark.parametrize(
    ("test", "model", "diagnosis"),
    [
        (
            "test_faded_scans",
            "shared_model",
            {"train-mode": (MODES, FADED, DROPOUT, 45), "state-mutated": (STATISTICS, FADED, None, 6)},
        ),
        ("test_confidence", "model", {"grad-mode": ({" (DigitNet)"}, CONFIDENCE, None, 1)}),
        (
            "test_restored_model",
            "restored",
            {"train-mode": (MODES, RESTORED, DROPOUT, 1), "state-mutated": (STATISTICS, RESTORED, None, 6)},
        ),
        (
            "test_functional_dropout",
            "functional",
            {"random-forward": ({" (FunctionalDigitNet)"}, PREDICT, FUNCTIONAL_DROPOUT, 1)},
        ),
        (
            "test_validation_loss",
            "restored",
            {
                "grad-mode": ({" (DigitNet)"}, VALIDATION, None, 45),
                "state-mutated": (PARAMETERS, VALIDATION, None, 10),
            },
        ),
        ("test_one_submodule", "restored", {"train-mode": ({".dropout (Dropout)"}, ONE_SUBMODULE, DROPOUT, 1)}),
    ],
)
def test_every_mistake_is_diagnosed(
    mistakes: Run, test: str, model: str, diagnosis: dict[str, tuple[set[str], str, str | None, int]]
) -> None:
    """By rule: what is at fault in the model, the line that ran it, the line in the model, how many."""
    found = mistakes.tests[test]
    assert found["outcome"] == "failed"
    assert {v["rule"]: (set(v["subjects"]), v["at"], v["cause"], v["count"]) for v in found["violations"]} == {
        rule: ({model + subject for subject in subjects}, *rest) for rule, (subjects, *rest) in diagnosis.items()
    }


@pytest.mark.parametrize(
    ("test", "function"), [("test_faded_scans", "faded_accuracy"), ("test_one_submodule", "test_one_submodule")]
)
def test_a_switch_to_training_mode_is_told_with_its_line(mistakes: Run, test: str, function: str) -> None:
    training = next(v for v in mistakes.tests[test]["violations"] if v["rule"] == "train-mode")
    assert training["details"]["since"] == line("test_mistakes.py", function, "# the mistake")


@pytest.mark.parametrize("test", ["test_faded_scans", "test_confidence", "test_one_submodule"])
def test_the_fixture_that_handed_the_model_over_is_told(mistakes: Run, test: str) -> None:
    for violation in mistakes.tests[test]["violations"]:
        name, at = (violation["details"][key] for key in ("fixture", "fixture_at"))
        assert name == violation["model"]
        assert at in {
            line(file, name, f"def {name}(") for file in ("conftest.py", "test_mistakes.py") if has(file, name)
        }


def has(file: str, function: str) -> bool:
    return f"def {function}(" in (DIGITS / file).read_text(encoding="utf-8")


def test_the_only_right_test_among_the_mistakes_passes(mistakes: Run) -> None:
    right = mistakes.tests["test_accuracy_after_that"]
    assert right["outcome"] == "passed"
    assert right["violations"] == []
    assert mistakes.totals["tests"] == 7
    assert mistakes.totals["violated"] == 6


def test_plain_pytest_passes_every_mistake(tmp_path: Path) -> None:
    """That is why the plugin exists."""
    assert "7 passed" in run("test_mistakes.py", tmp_path, "--evalmode=off").output


@pytest.fixture(scope="module")
def demo() -> str:
    done = subprocess.run([sys.executable, DIGITS / "demo.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_finds_what_it_promises(demo: str) -> None:
    assert "All 5 clean tests passed, all 6 mistakes were found, and all 5 causes of a lost accuracy were" in demo


def table(text: str) -> tuple[list[str], list[float]]:
    """The table of lost accuracies in a text: its words, and its accuracies in per cent."""
    lines = text.splitlines()
    start = lines.index("| what went wrong | accuracy | what the test says |")
    rows = lines[start : start + 7]
    shares = [float(share) for row in rows for share in re.findall(r"([\d.]+)%", row)]
    return [re.sub(r"\d+\.\d+", "#", row) for row in rows], shares


def test_the_readme_shows_the_demos_table(demo: str) -> None:
    """To the word; of numbers, the accuracies within three points, since another processor trains another model."""
    shown, made = (table(text) for text in ((ROOT / "README.md").read_text(encoding="utf-8"), demo))
    assert shown[0] == made[0]
    assert shown[1] == pytest.approx(made[1], abs=3.0)
    assert len(made[1]) == 10


def test_plain_pytest_passes_what_was_lost(tmp_path: Path) -> None:
    assert "5 passed" in run("test_lost_accuracy.py", tmp_path, "--inject", "--evalmode=off").output


def test_the_clean_suite_runs_from_the_root_of_the_repository() -> None:
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", "examples/digits/test_clean.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
