"""The reported line when both the tests and the code under test are below the rootdir."""

from __future__ import annotations

import pytest

from tests.suites import json_report, run, write

LIBRARY = """
import torch

class Server:
    def __init__(self, net):
        self.net = net

    @torch.no_grad()
    def answer(self):
        return self.net(torch.ones(2, 4))  # library

def serve(net):
    return Server(net).answer()
"""
HELPERS = """
import pytest
import torch
from library import serve

@pytest.fixture
def ask():
    return lambda net: serve(net)  # fixture
"""
SUITE = """
from library import serve

@pytest.mark.inference
def test_serves():
    net = Net()
    serve(net)  # test

@pytest.mark.inference
def test_asks(ask):
    ask(Net())

@pytest.mark.inference
@torch.no_grad()
def test_calls():
    Net()(torch.ones(2, 4))  # call

@pytest.mark.inference
def test_by_a_callback():
    list(map(serve, [Net()]))  # map

class Serving(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return serve(self.net)

@pytest.mark.inference
@torch.no_grad()
def test_through_a_model():
    Serving()(torch.ones(2, 4))  # outer
"""


def line(source: str, mark: str) -> int:
    return next(i for i, text in enumerate(source.splitlines(), 1) if text.endswith(f"# {mark}"))


def test_the_line_of_the_test_is_reported_with_that_of_the_library(pytester: pytest.Pytester) -> None:
    write(pytester, SUITE, library=LIBRARY, conftest=HELPERS)
    reported = {}
    for test in json_report(pytester)["tests"]:
        (violation,) = test["violations"]
        assert violation["rule"] == "train-mode"
        reported[test["nodeid"].partition("::")[2]] = violation["at"], violation["details"].get("through")
    source = (pytester.path / "test_it.py").read_text(encoding="utf-8")
    library = f"library.py:{line((pytester.path / 'library.py').read_text(encoding='utf-8'), 'library')}"
    conftest = (pytester.path / "conftest.py").read_text(encoding="utf-8")
    assert reported == {
        "test_serves": (f"test_it.py:{line(source, 'test')}", library),
        "test_asks": (f"conftest.py:{line(conftest, 'fixture')}", library),
        "test_calls": (f"test_it.py:{line(source, 'call')}", None),
        "test_by_a_callback": (f"test_it.py:{line(source, 'map')}", library),
        "test_through_a_model": (f"test_it.py:{line(source, 'outer')}", None),
    }


def test_python_files_decides_which_files_are_tests(pytester: pytest.Pytester) -> None:
    write(pytester, check_it=f"from nets import *\n{SUITE}", library=LIBRARY, conftest=HELPERS)
    pytester.makeini("[pytest]\npython_files = check_*.py")
    result = run(pytester, "-k", "test_serves")
    result.stdout.fnmatch_lines(["*check_it.py:*serve(net)*", "*which led to library.py:*self.net(torch*", "*fix: *"])
