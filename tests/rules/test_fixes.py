"""Fixes followed to the letter: each is applied to the code that it is about, and the test is run again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent, indent
from typing import Any

import pytest

from tests.suites import json_report

HEADER = """\
import pytest
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))


def batch():
    return torch.ones(3, 4)


"""


@dataclass(frozen=True)
class Case:
    """A test that breaks a rule, with what the fix of that rule must do."""

    name: str
    rule: str
    body: str
    clause: int = 0
    """Which of the alternatives of the fix to follow."""
    args: str = ""
    """Arguments of the test."""
    before: str = ""
    """Code in front of the test."""


def apply_fix(source: str, violation: dict[str, Any], clause: int) -> str:
    """Return a test module changed as the remedy of a violation says."""
    fix = violation["remedy"].split("; ")[clause]
    lines = source.splitlines()
    if "with evalmode.paused()" in fix:
        named = [violation["at"], *violation["details"].values(), *re.findall(r"\S+\.py:\d+", fix)]
        numbers = [int(n) for place in named for n in re.findall(r"test_it\.py:(\d+)", str(place))]
        first, last = min(numbers), max(numbers)
        wrapped = indent("\n".join(lines[first - 1 : last]), "    ")
        lines[first - 1 : last] = [f"{_space(lines[first - 1])}with evalmode.paused():", wrapped]
        return "\n".join(lines).replace("def test_it(", "def test_it(evalmode, ").replace(", )", ")")
    if (called := re.search(r"call (\S+\(\)) before the first forward", fix)) is not None:
        return _insert(lines, called[1], _line(violation["at"]))
    if (called := re.search(r"call (\S+\(\)) before the forward at test_it\.py:(\d+)", fix)) is not None:
        return _insert(lines, called[1], int(called[2]))
    if (called := re.search(r"call (\S+\(\)) (after test_it\.py.*)", fix)) is not None:
        for number in sorted(map(int, re.findall(r"after test_it\.py:(\d+)", called[2])), reverse=True):
            lines = _insert(lines, called[1], number + 1).splitlines()
        return "\n".join(lines)
    if (named_line := re.search(r"call eval\(\) where test_it\.py:(\d+) calls train\(\)", fix)) is not None:
        number = int(named_line[1]) - 1
        lines[number] = lines[number].replace(".train()", ".eval()")
        return "\n".join(lines)
    if (allowed := re.search(r"pass (allow=\[.*?\])", fix)) is not None:
        return source.replace("@pytest.mark.inference", f"@pytest.mark.inference({allowed[1]})")
    if "call the model under torch.inference_mode()" in fix:
        number = _line(violation["at"]) - 1
        lines[number] = f"    with torch.inference_mode():\n    {lines[number]}"
        return "\n".join(lines)
    raise AssertionError(f"no way to follow {fix!r}")


def _line(place: str) -> int:
    return int(place.rpartition(":")[2])


def _insert(lines: list[str], statement: str, number: int) -> str:
    """Insert a statement before a line, as far indented."""
    space = _space(lines[min(number, len(lines)) - 1])
    return "\n".join([*lines[: number - 1], f"{space}{statement}", *lines[number - 1 :]])


def _space(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))


def violations_of(pytester: pytest.Pytester, source: str, *args: str) -> tuple[str, list[dict[str, Any]]]:
    """Run a test module without failing violations; return the test's own outcome and the violations."""
    (pytester.path / "test_it.py").write_text(source, encoding="utf-8")
    (test,) = json_report(pytester, "--evalmode=warn", *args)["tests"]
    return test["outcome"], test["violations"]


def source_of(case: Case) -> str:
    body = indent(dedent(case.body).strip(), "    ")
    return f"{HEADER}{dedent(case.before)}\n\n@pytest.mark.inference\ndef test_it({case.args}):\n{body}\n"


BACKWARD = """
    model = make()
    model.train()
    loss = model(batch()).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
"""
FRESH_BACKWARD = BACKWARD.replace("    model.train()\n", "")
EVAL_BACKWARD = BACKWARD.replace("model.train()", "model.eval()")

CASES = [
    Case("backward without an optimizer", "train-mode", BACKWARD),
    Case("... and its graph", "grad-mode", BACKWARD),
    Case("backward of a fresh model", "train-mode", FRESH_BACKWARD),
    Case("... and its graph", "grad-mode", FRESH_BACKWARD),
    Case("backward in eval mode", "grad-mode", EVAL_BACKWARD),
    Case("backward in eval mode, on purpose", "grad-mode", EVAL_BACKWARD, clause=1),
    Case(
        "gradients of the input",
        "grad-mode",
        """
        model, x = make().eval(), batch().requires_grad_()
        out = model(x).sum()
        (gradient,) = torch.autograd.grad(out, x)
        assert gradient.shape == x.shape
        """,
        clause=1,
    ),
    Case(
        "saliency of a model in training mode",
        "train-mode",
        """
        model, x = make(), batch().requires_grad_()
        model(x).sum().backward()
        assert x.grad is not None
        """,
        clause=1,
    ),
    Case(
        "a backward through a dataclass",
        "train-mode",
        """
        model = Wrapper()
        out = model(batch())
        out.loss.backward()
        assert model.body[0].weight.grad is not None
        """,
        before="""
        from dataclasses import dataclass

        @dataclass
        class Output:
            loss: torch.Tensor

        class Wrapper(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = make()

            def forward(self, x):
                return Output(self.body(x).sum())
        """,
    ),
    Case(
        "an optimizer",
        "train-mode",
        """
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(batch()).sum().backward()
        optimizer.step()
        """,
    ),
    Case(
        "update_bn",
        "train-mode",
        """
        model = make().eval()
        torch.optim.swa_utils.update_bn([batch()], model)
        with torch.no_grad():
            model(batch())
        """,
    ),
    Case(
        "a mode that is switched again",
        "train-mode",
        """
        model = make()
        model.eval()
        with torch.no_grad():
            model(batch())
            model.train()
            model(batch())
        """,
        clause=1,
    ),
    Case(
        "a mode that is switched again before the only forward",
        "train-mode",
        """
        model = make().eval()
        model.train()
        with torch.no_grad():
            model(batch())
        """,
        clause=1,
    ),
    Case(
        "a mode that is switched twice",
        "train-mode",
        """
        model = make()
        with torch.no_grad():
            model.train()
            model(batch())
            model.eval()
            model(batch())
            model.train()
            model(batch())
        """,
        clause=1,
    ),
    Case(
        "a model that is switched where it is called",
        "train-mode",
        """
        model = make().eval()
        with torch.no_grad():
            model.train()(batch())
        """,
        clause=1,
    ),
    Case(
        "a flag that is set by hand",
        "train-mode",
        """
        model = make().eval()
        with torch.no_grad():
            model(batch())
            model[1].training = model[2].training = True
            model(batch())
        """,
    ),
    Case(
        "a detector that returns losses in training mode only",
        "train-mode",
        """
        model = Detector().train()
        with torch.no_grad():
            losses = model(batch())
        assert losses["box"] > 0
        """,
        before="""
        class Detector(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = make()

            def forward(self, x):
                out = self.body(x)
                return {"box": out.square().sum()} if self.training else out
        """,
    ),
    Case(
        "a fresh detector",
        "train-mode",
        """
        model = Detector()
        with torch.no_grad():
            losses = model(batch())
        assert losses["box"] > 0
        """,
        before="""
        class Detector(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = make()

            def forward(self, x):
                out = self.body(x)
                return self.losses(out) if self.training else out

            def losses(self, out):
                return {"box": out.square().sum()}
        """,
    ),
    Case(
        "a layer of a Sequential",
        "train-mode",
        """
        with torch.no_grad():
            model(batch())
        """,
        args="model",
        before="""
        @pytest.fixture
        def model():
            model = make().eval()
            model[2].train()
            return model
        """,
    ),
    Case(
        "a layer of a ModuleDict",
        "train-mode",
        """
        net = nn.ModuleDict({"a-b": make(), "1": nn.Identity()}).eval()
        net["a-b"][2].train()
        whole = Whole(net)
        whole.eval()
        whole.net["a-b"][2].training = True
        with torch.no_grad():
            whole(batch())
        """,
        before="""
        class Whole(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, x):
                return self.net["a-b"](x)
        """,
    ),
    Case(
        "a numbered layer that is not an item",
        "train-mode",
        """
        net = Numbered().eval()
        net.get_submodule("0").training = True
        with torch.no_grad():
            net(batch())
        """,
        before="""
        class Numbered(nn.Module):
            def __init__(self):
                super().__init__()
                self.add_module("0", nn.Dropout())
                self.head = nn.Linear(4, 4)

            def forward(self, x):
                return self.head(self.get_submodule("0")(x))
        """,
    ),
    Case(
        "two models of one type",
        "train-mode",
        """
        generator = make().eval()
        inception = make()
        with torch.no_grad():
            images = generator(batch())
            inception(images.expand(3, 4))
        """,
    ),
    Case(
        "a model in a container",
        "train-mode",
        """
        nets = {"student": make(), "teacher": [make().eval()]}
        with torch.no_grad():
            nets["teacher"][0](batch())
            nets["student"](batch())
        """,
    ),
    Case(
        "a model that a helper runs",
        "train-mode",
        """
        network = make()
        evaluate(network)
        """,
        before="""
        def evaluate(model):
            with torch.no_grad():
                return model(batch())
        """,
    ),
    Case(
        "a method of a submodule",
        "train-mode",
        """
        network = Coder()
        with torch.no_grad():
            network.encode(batch())
        """,
        before="""
        class Coder(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.decoder = make(), make()

            def encode(self, x):
                return self.encoder(x)
        """,
    ),
    Case(
        "a forgotten eval()",
        "train-mode",
        """
        model = make()
        with torch.no_grad():
            model(batch())
        """,
    ),
    Case(
        "a forgotten no_grad()",
        "grad-mode",
        """
        model = make().eval()
        model(batch())
        """,
    ),
]


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.repetition)], ids=["default", "strict"])
@pytest.mark.parametrize("case", CASES, ids=[f"{each.name}-{each.rule}-{each.clause}" for each in CASES])
def test_a_fix_that_is_followed_works(pytester: pytest.Pytester, case: Case, strict: bool) -> None:
    args = ("--evalmode-strict",) if strict else ()
    source = source_of(case)
    outcome, violations = violations_of(pytester, source, *args)
    assert outcome == "passed"
    (violation,) = (each for each in violations if each["rule"] == case.rule)
    fixed = apply_fix(source, violation, case.clause)
    outcome, violations = violations_of(pytester, fixed, *args)
    assert outcome == "passed", fixed
    assert case.rule not in {each["rule"] for each in violations}, fixed
