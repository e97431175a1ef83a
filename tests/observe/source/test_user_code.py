"""The files that hold user code: the same for lines of the stack and for fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import pytest_evalmode
from pytest_evalmode.observe.source.user_code import is_installed, user_path
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.session import fixtures

INSTALLED = [
    "env/lib/site-packages/plugin.py",
    "env/lib/dist-packages/plugin.py",
    "site-packages/plugin/__init__.py",
]
USER_FILES = ["tests/test_it.py", "conftest.py", "site-packages.py", "my-site-packages/code.py"]


@pytest.mark.parametrize("path", [*INSTALLED, *USER_FILES, "../elsewhere.py"])
def test_lines_and_fixtures_agree(path: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("def model():\n    return 1\n")
    namespace: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    code = namespace["model"].__code__  # type: ignore[attr-defined]
    site = UserLines(root).site(code, 1)
    assert site == fixtures._def_line(str(file), code, root)
    assert (site.file if site else None) == (path if path in USER_FILES else None)


def test_libraries_are_installed() -> None:
    for module in (os, torch, pytest_evalmode):
        assert module.__file__ is not None
        assert is_installed(Path(module.__file__).resolve())
    assert not is_installed(Path(__file__).resolve())


def test_without_a_root_code_may_be_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_path(str(tmp_path / "script.py"), None) == str(tmp_path / "script.py")
    monkeypatch.chdir(tmp_path)
    assert user_path(str(tmp_path / "script.py"), None) == user_path("script.py", None) == "script.py"
    assert user_path("<string>", None) is None


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert user_path(str(tmp_path / "script.py"), None) == str(tmp_path / "script.py")
    assert user_path(str(tmp_path / "script.py"), tmp_path) == "script.py"
    assert user_path("script.py", None) == "script.py"
    assert user_path("script.py", tmp_path) is None
    assert user_path(os.__file__, None) is None
