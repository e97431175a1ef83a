"""Hooks for all tests: watch the server's models from the start of each test, whether or not they run."""

from __future__ import annotations

import pytest
from serving import SERVER
from torch import nn


def pytest_evalmode_models(item: pytest.Item) -> dict[str, nn.Module]:
    return {f"server.{name}": model for name, model in SERVER.models().items()}
