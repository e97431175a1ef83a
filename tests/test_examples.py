"""The examples behave as documented: the clean suite passes, and every mistake and lost accuracy is diagnosed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sklearn.model_selection  # type: ignore[import-untyped]  # noqa: F401  # forked runs then need not import it

from tests import forked

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits"


@dataclass(frozen=True)
class Run:
    """The output of a pytest run, and the tests and totals of its report."""

    output: str
    tests: dict[str, dict[str, Any]]
    totals: dict[str, int]


@dataclass(frozen=True)
class Demo:
    """What the demo printed, and its run of each suite."""

    output: str
    runs: dict[str, Run]


@pytest.fixture(scope="module")
def demo() -> Demo:
    """Run the demo; fork the processes that it starts."""
    spec = spec_from_file_location("demo", DIGITS / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    runs: dict[str, Run] = {}

    def fork(command: list[str], *, cwd: Path, check: bool) -> None:
        output = forked.run_pytest(cwd, *command[3:]).stdout
        path = next(option.partition("=")[2] for option in command if option.startswith("--evalmode-report="))
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        tests = {test["nodeid"].partition("::")[2]: test for test in report["tests"]}
        runs[command[-1]] = Run(output, tests, report["totals"])

    with mock.patch.object(module, "subprocess", SimpleNamespace(run=fork)), redirect_stdout(StringIO()) as output:
        assert module.main() == 0, output.getvalue()
    return Demo(output.getvalue(), runs)


@pytest.fixture(scope="module")
def mistakes(demo: Demo) -> Run:
    return demo.runs["test_mistakes.py"]


def line(file: str, function: str, text: str) -> str:
    """Return `file:line` of the first line of a function that contains a text."""
    lines = (DIGITS / file).read_text(encoding="utf-8").splitlines()
    start = next(number for number, content in enumerate(lines) if f"def {function}(" in content)
    return next(f"{file}:{number}" for number, content in enumerate(lines[start:], start + 1) if text in content)


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
def test_report_diagnoses_every_mistake(
    mistakes: Run, test: str, model: str, diagnosis: dict[str, tuple[set[str], str, str | None, int]]
) -> None:
    """`diagnosis` holds per rule: the subjects, the line of the call, the line in the model, the count."""
    reported = mistakes.tests[test]
    assert reported["outcome"] == "failed"
    assert {v["rule"]: (set(v["subjects"]), v["at"], v["cause"], v["count"]) for v in reported["violations"]} == {
        rule: ({model + subject for subject in subjects}, *rest) for rule, (subjects, *rest) in diagnosis.items()
    }


@pytest.mark.parametrize(
    ("test", "function"), [("test_faded_scans", "faded_accuracy"), ("test_one_submodule", "test_one_submodule")]
)
def test_report_names_the_line_that_switched_to_training_mode(mistakes: Run, test: str, function: str) -> None:
    training = next(v for v in mistakes.tests[test]["violations"] if v["rule"] == "train-mode")
    assert training["details"]["since"] == line("test_mistakes.py", function, "# the mistake")


@pytest.mark.parametrize("test", ["test_faded_scans", "test_confidence", "test_one_submodule"])
def test_report_names_the_fixture_that_provided_the_model(mistakes: Run, test: str) -> None:
    for violation in mistakes.tests[test]["violations"]:
        name, at = (violation["details"][key] for key in ("fixture", "fixture_at"))
        assert name == violation["model"]
        assert at in {
            line(file, name, f"def {name}(") for file in ("conftest.py", "test_mistakes.py") if has(file, name)
        }


def has(file: str, function: str) -> bool:
    return f"def {function}(" in (DIGITS / file).read_text(encoding="utf-8")


def test_only_correct_test_among_the_mistakes_passes(mistakes: Run) -> None:
    correct = mistakes.tests["test_accuracy_after_faded_scans"]
    assert correct["outcome"] == "passed"
    assert correct["violations"] == []
    assert mistakes.totals["tests"] == 7
    assert mistakes.totals["violated"] == 6


def test_mistakes_and_lost_accuracies_pass_without_the_plugin() -> None:
    alone = ["-c", os.devnull, f"--rootdir={DIGITS}", "-pno:randomly", "-pno:cacheprovider", "--evalmode=off"]
    done = forked.run_pytest(DIGITS, *alone, "--inject", "test_mistakes.py", "test_lost_accuracy.py")
    assert "12 passed" in done.stdout


ALL_REPORTED = "All 5 clean tests passed, all 6 mistakes were reported, and all 5 causes of a lower accuracy were named"


def test_demo_reports_all_mistakes_and_causes(demo: Demo) -> None:
    assert ALL_REPORTED in demo.output


@pytest.mark.repetition
def test_demo_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, DIGITS / "demo.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ALL_REPORTED in done.stdout


def table(text: str) -> tuple[list[str], list[float]]:
    """Return the rows of the table of lost accuracies without decimals, and its accuracies in percent."""
    lines = text.splitlines()
    start = lines.index("| what went wrong | accuracy | what the test says |")
    rows = lines[start : start + 7]
    accuracies = [float(number) for row in rows for number in re.findall(r"([\d.]+)%", row)]
    return [re.sub(r"\d+\.\d+", "#", row) for row in rows], accuracies


def test_lock_page_shows_the_table_of_the_demo(demo: Demo) -> None:
    """The accuracies may differ by three points, because another processor trains a slightly different model."""
    page = (ROOT / "docs" / "lock" / "index.md").read_text(encoding="utf-8")
    documented, printed = table(page), table(demo.output)
    assert documented[0] == printed[0]
    assert documented[1] == pytest.approx(printed[1], abs=3.0)
    assert len(printed[1]) == 10


@pytest.mark.repetition
def test_clean_suite_runs_from_the_root_of_the_repository() -> None:
    done = forked.run_pytest(ROOT, "-pno:cacheprovider", "examples/digits/test_clean.py")
    assert done.returncode == 0, done.stdout + done.stderr
