"""Each exception can be imported under the name that is printed, and pickled with all its attributes."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from collections.abc import Callable
from importlib import import_module

import pytest

import pytest_evalmode
from pytest_evalmode import Violation
from tests.test_subpackages import modules

VIOLATION = Violation(rule="train-mode", model="net", subjects=("net (Net)",), message="net ran", finding="it ran")


def exceptions() -> list[type[BaseException]]:
    """Return all exception classes of the package that users can see."""
    found = set[type[BaseException]]()
    for name in modules():
        tree = ast.parse(inspect.getsource(import_module(f"pytest_evalmode.{name}")))
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
        classes = (node.name for node in nodes if not node.name.startswith("_"))  # the others never leave their module
        values = [getattr(import_module(f"pytest_evalmode.{name}"), each, None) for each in classes]
        found |= {each for each in values if inspect.isclass(each) and issubclass(each, BaseException)}
    return sorted(found, key=lambda each: each.__name__)


@pytest.mark.parametrize("kind", exceptions())
def test_each_can_be_imported_from_the_package(kind: type[BaseException]) -> None:
    assert getattr(pytest_evalmode, kind.__name__) is kind
    assert kind.__name__ in pytest_evalmode.__all__
    # The short summary prints the bare name of this one, which is the most frequent.
    assert kind.__module__ == ("builtins" if kind.__name__ == "HygieneViolation" else "pytest_evalmode")


def through_pickle(error: BaseException) -> object:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("make_copy", [through_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", exceptions())
def test_each_is_copied_with_its_attributes(
    kind: type[BaseException], make_copy: Callable[[BaseException], BaseException]
) -> None:
    error = kind([VIOLATION] if kind.__name__.startswith("Hygiene") else "net\x1b[31m ran")
    error.add_note("seen on worker 3")
    sent = make_copy(error)
    assert type(sent) is kind
    assert (str(sent), sent.args, vars(sent)) == (str(error), error.args, vars(error))


def test_a_violation_keeps_the_name_of_the_marker() -> None:
    error = pytest_evalmode.HygieneViolation([VIOLATION], "evaluation")
    assert "@pytest.mark.evaluation(" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
