"""Causes of changed values: one table per kind of data, one search, and one proof that applies a cause."""

from pytest_evalmode.lock.causes.cause import Diagnosis
from pytest_evalmode.lock.causes.inputs import diagnose
from pytest_evalmode.lock.causes.outputs import describe_change
from pytest_evalmode.lock.causes.text.tokens import is_tokens

__all__ = ["Diagnosis", "describe_change", "diagnose", "is_tokens"]
