"""The core never imports pytest, and the pytest side never imports torch.  Imports are checked in new processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_evalmode
from tests import forked, suites
from tests.test_subpackages import PACKAGE, modules

SESSION = {"evalmode_fixture", "fixtures", "options", "settings", "stash", "user_hooks"}
GUARDED_TEST = ("guard_setup", "item_reporter", "outcome", "phases", "unittest_cases", "user_properties")
RECORD = ("collected_tests", "lock_records", "recorder", "report_files", "session_results")
SESSION |= {*(f"guarded_test.{name}" for name in GUARDED_TEST), *(f"record.{name}" for name in RECORD)}
PYTEST_SIDE = {"plugin", "policy", "file_writing", *(f"session.{name}" for name in SESSION)}
PYTEST_SIDE |= {f"report.{name}" for name in ("baseline", "message", "records", "suggest", "summary")}
PYTEST_SIDE |= {
    f"lock.{name}" for name in ("host", "lock_file", "lock_fixture", "lock_folder", "sample_store", "session_locks")
}
NEEDS_PYTEST = {"plugin", "session.hookspecs", *(f"session.{name}" for name in SESSION)}
NEEDS_PYTEST |= {"lock.host", "lock.lock_fixture", "lock.session_locks"}


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that imports the package under test."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, text=True, capture_output=True, check=False)


def imported_by(names: list[str], what: str | tuple[str, ...], cwd: Path) -> set[str]:
    """Import modules in order until `what` is imported too, or one of several; return the module that imported it."""
    result = python(
        f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module("pytest_evalmode." + name)
    if not sys.modules.keys().isdisjoint({(what,) if isinstance(what, str) else what}):
        print(name)
        break
""",
        cwd,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_listed_modules_exist() -> None:
    assert {"guards", "trace", "observe.forwards.observer", "rules.forward_rules", *PYTEST_SIDE} <= set(modules())


def test_the_core_never_imports_pytest(tmp_path: Path) -> None:
    core = [name for name in modules() if name not in NEEDS_PYTEST]
    assert imported_by(core, "pytest", tmp_path) == set()


def test_the_pytest_side_never_imports_torch(tmp_path: Path) -> None:
    assert imported_by(sorted(PYTEST_SIDE), "torch", tmp_path) == set()


def test_rules_reports_and_facts_import_neither_torch_nor_pytest(tmp_path: Path) -> None:
    pure = [name for name in modules() if name == "trace" or name.startswith(("rules", "report"))]
    assert imported_by(pure, ("torch", "pytest"), tmp_path) == set()


def test_imported_by_detects_imports(tmp_path: Path) -> None:
    assert imported_by(["guards"], "torch", tmp_path) == {"guards"}
    assert imported_by(["plugin"], "pytest", tmp_path) == {"plugin"}


LAZY = ("guards", "lock", "observe", "report", "rules", "trace")
"""What a run imports only when it is needed: creating its dataclasses takes longer than everything else."""


def test_the_plugin_alone_imports_nothing_that_is_needed_later(tmp_path: Path) -> None:
    assert imported_by(["plugin"], tuple(f"pytest_evalmode.{what}" for what in LAZY), tmp_path) == set()


SCRIPT = """
import sys
import torch
from torch import nn
import pytest_evalmode
from pytest_evalmode import HygieneError, guard, inference

net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
x = torch.ones(1, 2)
with inference(net):
    net(x)
assert net.training and net[1].training
with torch.no_grad(), guard(net.eval()):
    net(x)
try:
    with torch.no_grad(), guard():
        net.train()(x)
except HygieneError as error:
    print(error.violations[0].rule)
assert "pytest" not in sys.modules and "_pytest" not in sys.modules
"""


def test_a_script_that_guards_never_imports_pytest(tmp_path: Path) -> None:
    result = python(SCRIPT, tmp_path)
    assert (result.returncode, result.stdout) == (0, "train-mode\n"), result.stderr


def test_the_package_alone_imports_neither_torch_nor_pytest(tmp_path: Path) -> None:
    result = python("import sys, pytest_evalmode; print({'torch', 'pytest'} & sys.modules.keys())", tmp_path)
    assert result.stdout == "set()\n", result.stderr


def test_the_package_exports_the_names_in_all(tmp_path: Path) -> None:
    for name in pytest_evalmode.__all__:
        assert getattr(pytest_evalmode, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'gard'"):
        pytest_evalmode.gard  # noqa: B018  # the attribute access is tested


# Other plugins may import torch, so only ours is loaded.
CONFTEST = f"""
import sys

def pytest_unconfigure():
    print("\\ntorch was", "imported" if "torch" in sys.modules else "not imported")
    print("of the plugin:", *[name for name in {LAZY} if f"pytest_evalmode.{{name}}" in sys.modules])
"""


MARKED = "import pytest\n@pytest.mark.inference\ndef test_it(): pass"
TESTCASE = "import unittest\nclass TestIt(unittest.TestCase):\n    def test_it(self): pass"
GUARDING = "guards observe report rules trace"


@pytest.mark.parametrize(
    ("source", "args", "imported"),
    [
        ("def test_it(): pass", [], ""),
        ("def test_it(): assert 0", ["-ra", "--junitxml=junit.xml"], ""),
        ("def test_it(): pass", ["-o", "evalmode_allow=train-mode", "-o", "evalmode_mark=other/*"], "rules trace"),
        ("def test_it(): pass", ["--evalmode=off", "--evalmode-all"], ""),
        ("def test_it(): pass", ["--evalmode-update-lock"], "lock"),
        ("def test_it(): pass", ["--evalmode-report=report.json"], "report rules trace"),
        ("def test_it(evalmode_lock): pass", [], "lock"),
        ("def test_it(evalmode): pass", [], GUARDING),
        (TESTCASE, [], ""),
        (MARKED, ["--evalmode=off"], ""),
        (MARKED, ["--collect-only"], ""),
        (MARKED, ["-k", "not test_it"], ""),
        (MARKED, [], GUARDING),
    ],
)
def test_a_run_imports_torch_and_the_plugin_only_if_it_needs_them(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str, args: list[str], imported: str
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=source)
    result = pytester.runpytest_subprocess("-s", "-p", "pytest_evalmode.plugin", *args)
    torch = "imported" if imported == GUARDING else "not imported"
    result.stdout.fnmatch_lines([f"torch was {torch}", f"of the plugin: {imported}".rstrip()])


def test_guarding_needs_no_other_plugin(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net())\n")
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    args = ("-p", "pytest_evalmode.plugin", "-W", "error", "--strict-markers")
    lines = forked.run_pytest(pytester.path, *args, env=alone).stdout.splitlines()
    assert "E   HygieneViolation: train-mode: Net ran once in training mode" in lines
    assert pytest.RunResult.parse_summary_nouns(lines) == {"failed": 1}
