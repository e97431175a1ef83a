"""The examples for user hooks and for slow fixtures behave as the README says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import forked

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, *options: str) -> list[str]:
    """Run an example as if its folder had been copied; return its output lines."""
    folder = EXAMPLES / example
    config = folder / "pytest.ini"
    alone = ["-c", str(config if config.exists() else os.devnull), f"--rootdir={folder}"]
    done = forked.run_pytest(folder, "-pno:randomly", "-pno:cacheprovider", *alone, *options, env={"COLUMNS": "200"})
    return done.stdout.splitlines()


def has(lines: list[str], *texts: str) -> bool:
    """Return whether the lines contain the texts, in this order, each in a different line."""
    rest = iter(lines)
    return all(any(text in line for line in rest) for text in texts)


@pytest.fixture(scope="module")
def suite() -> list[str]:
    return run("user_hooks", "-rA")


def test_the_custom_rule_applies_to_its_directory_only(suite: list[str]) -> None:
    assert has(suite, "edge-dtype: server.ranker (Sequential) has tensors of type float32")
    assert has(suite, "FAILED tests/edge/test_edge.py::test_ranker - HygieneViolation: edge-dtype")
    assert has(suite, "PASSED tests/edge/test_edge.py::test_tiny")
    assert has(suite, "PASSED tests/test_server.py::test_ranker")


def test_the_custom_rule_prints_its_fix_and_exemption(suite: list[str]) -> None:
    finding = next((line.removeprefix("E").strip() for line in suite if " edge-dtype  " in line), "")
    assert finding.startswith("edge-dtype  server.ranker (Sequential) has ")
    assert finding.endswith("; use float16")
    assert has(
        suite,
        finding,
        "fix: convert the model first: model.half()",
        'intended? @pytest.mark.inference(allow=["edge-dtype"]',
    )


def test_a_model_from_a_hook_is_watched(suite: list[str]) -> None:
    assert has(suite, "FAILED tests/test_server.py::test_warm_up_of_the_other_model - HygieneViolation: state-mutated")
    assert has(suite, "state-mutated  server.tiny.0.weight changed    max |Δ|")
    assert has(suite, "2 failed, 2 passed")


@pytest.fixture(scope="module")
def predictions() -> list[str]:
    return run("fixtures", "-rA")


def test_predictions_in_a_clean_fixture_pass(predictions: list[str]) -> None:
    assert has(predictions, "PASSED test_predictions.py::test_probabilities")
    assert has(predictions, "PASSED test_predictions.py::test_every_class_is_predicted")


def test_an_unclean_fixture_fails_with_the_message_of_a_test(predictions: list[str]) -> None:
    line = next(
        number
        for number, text in enumerate((EXAMPLES / "fixtures/test_predictions.py").read_text("utf-8").splitlines(), 1)
        if "model.train()(batch)" in text
    )
    assert has(predictions, "ERROR at setup of test_careless")
    assert has(
        predictions,
        "HygieneError: train-mode: Sequential ran once in training mode (+1 more)",
        "Sequential.1 (BatchNorm1d)",
        f"test_predictions.py:{line}  logits: Tensor = model.train()(batch)",
        "state-mutated",
        f"call eval() where test_predictions.py:{line} calls train()",
    )
    assert has(predictions, "2 passed, 1 error")
    assert not [text for text in predictions if "pytest_evalmode/" in text]


def test_no_test_fails_when_guarding_is_off() -> None:
    assert has(run("user_hooks", "--evalmode=off"), "4 passed")
