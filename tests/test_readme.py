"""The README is correct: its code runs in the folder of the example, and prints the failure that it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.pages import ROOT, Block, blocks

PREAMBLE = """
import pytest
import torch
from digits import DigitNet, accuracy, load_split, train
from digits import predict as probabilities
from test_mistakes import faded_accuracy


@pytest.fixture(scope="module")
def shared_model():
    return train(load_split()[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DigitNet().eval()


@pytest.fixture
def preprocess():
    return torch.nn.Identity()


def fine_tune(model):
    model.load_state_dict(train(load_split()[0], epochs=2).state_dict())


def predict(model, images):
    return probabilities(model, images).argmax(dim=1)


"""
"""Definitions that the README's code uses but does not show."""
BLOCKS = list(blocks((ROOT / "README.md").read_text(encoding="utf-8")))


def blocks_in(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A project with the README's configuration, and with the example and the README's tests in its guarded folder."""
    (configuration,) = blocks_in("toml")
    (tmp_path / "pyproject.toml").write_text(configuration.code, encoding="utf-8")
    folder = tmp_path / "tests" / "inference"
    shutil.copytree(ROOT / "examples" / "digits", folder, ignore=shutil.ignore_patterns("__*"))
    code = PREAMBLE + "\n\n".join(block.code for block in blocks_in("python"))
    (folder / "test_readme.py").write_text(code, encoding="utf-8")
    return tmp_path


def run(folder: Path, *args: str) -> str:
    return forked.run_pytest(folder, "-pno:randomly", "-pno:cacheprovider", *args).stdout


def test_readme_code_breaks_the_documented_rules(suite: Path) -> None:
    output = run(suite, "tests/inference/test_readme.py", "--evalmode-report=report.json", "--evalmode-update-lock")
    tests: list[dict[str, Any]] = json.loads((suite / "report.json").read_text(encoding="utf-8"))["tests"]
    broken = {test["nodeid"].rpartition("::")[2]: [v["rule"] for v in test["violations"]] for test in tests}
    expected = {"test_faded_scans": ["train-mode", "state-mutated"], "test_fine_tuning": [], "test_accuracy": []}
    assert broken == expected, output
    assert "1 failed, 2 passed" in output
    assert "1 passed" in run(suite, "tests/inference/test_readme.py", "-k", "test_accuracy")


def test_readme_shows_the_printed_failure(suite: Path) -> None:
    (printed,) = blocks_in("text")
    test = "test_mistakes.py::test_faded_scans"
    output = run(suite / "tests" / "inference", "-c", os.devnull, "--rootdir=.", test)
    assert without_decimals(printed.code) in without_decimals(output)


def without_decimals(text: str) -> str:
    """Shorten numbers to one decimal, because processors round differently."""
    return re.sub(r"(\d\.\d)\d*", r"\1", text)
