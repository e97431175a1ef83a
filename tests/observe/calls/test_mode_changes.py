"""The line that switched a module to training mode is reported with the forwards that ran in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from pytest_evalmode import Guard, guard
from pytest_evalmode.rules import Violation
from tests.nets import Net, batch, watching


def train_mode(g: Guard) -> Violation:
    return next(violation for violation in g.violations if violation.rule == "train-mode")


def since(g: Guard) -> str:
    """Return the source of the reported line, or "" if there is none."""
    violation = train_mode(g)
    assert violation.details == ({"since": str(violation.since)} if violation.since else {})
    assert violation.since is None or violation.since.file.endswith("test_mode_changes.py")
    return violation.since.source if violation.since else ""


class Frozen(Net):
    """Keeps its batch norm in eval mode, as fine-tuning often does."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.bn.eval()
        return self


class Outer(nn.Module):
    """Contains a module that overrides `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Frozen()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


def whole_model(model: nn.Module) -> None:
    model.train()


def module_by_module(model: nn.Module) -> None:
    for part in model.modules():
        part.train()


def three_times(model: nn.Module) -> None:
    model.train()
    model.eval()
    model.train(True)


def through_the_class(model: nn.Module) -> None:
    nn.Module.train(model)


SWITCHES: dict[Callable[[nn.Module], None], str] = {
    whole_model: "model.train()",
    module_by_module: "part.train()",
    three_times: "model.train(True)",
    through_the_class: "nn.Module.train(model)",
}


@pytest.mark.parametrize("net", [Net, Frozen, Outer])
@pytest.mark.parametrize(("switch", "source"), SWITCHES.items())
def test_the_line_that_switched_a_model_is_reported(
    net: type[nn.Module], switch: Callable[[nn.Module], None], source: str
) -> None:
    model = net().eval()
    with watching(model) as g, torch.no_grad():
        switch(model)
        model(batch())
    assert since(g) == source


def test_the_line_that_switched_a_submodule_is_reported() -> None:
    model = Net().eval()
    with watching(model) as g, torch.no_grad():
        model.drop.train()
        model(batch())
    assert since(g) == "model.drop.train()"
    assert train_mode(g).finding == "Net.drop (Dropout) was in training mode"


@pytest.mark.parametrize("net", [Net, Frozen, Outer])
def test_no_line_is_reported_for_a_mode_from_before_the_window(net: type[nn.Module]) -> None:
    model = net()
    with watching(model) as g, torch.no_grad():
        model(batch())
    assert since(g) == ""


def test_no_line_is_reported_if_it_explains_only_some_modules() -> None:
    model = Net()
    with watching(model) as g, torch.no_grad():
        model.drop.train()
        model(batch())
    assert since(g) == ""


def test_the_line_that_switched_another_model_is_not_reported() -> None:
    model, other = Net(), Net().eval()
    with watching(model) as g, torch.no_grad():
        other.train()
        model(batch())
    assert since(g) == ""


def test_a_line_whose_effect_was_undone_is_not_reported() -> None:
    model = Net()
    with watching(model) as g, torch.no_grad():
        model.train()
        model.eval()
        for part in model.modules():
            part.training = True
        model(batch())
    assert since(g) == ""


def test_a_pause_is_not_observed_and_forgets_earlier_lines() -> None:
    model = Net().eval()
    with watching(model) as g, torch.no_grad():
        model.train()
        with g.paused():
            model.eval().train()
        model(batch())
    assert since(g) == ""


def test_a_line_before_allow_is_known_inside_it() -> None:
    model = Net().eval()
    with watching(model) as g, torch.no_grad():
        model.train()
        with g.allow("state-mutated"):
            model(batch())
    assert since(g) == "model.train()"


def test_a_model_that_is_switched_but_not_run_is_clean() -> None:
    model = Net().eval()
    with guard(model), torch.no_grad():
        model.train()
        model.eval()
        model(batch())
        model.train()


def test_a_thread_that_only_switches_a_model_does_not_excuse_a_draw() -> None:
    """A thread that has run a model may have drawn, which would excuse a draw of this thread."""

    class Augments(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + (torch.rand_like(x) if not self.training else 0))

    model = Augments()
    with ThreadPoolExecutor(1) as pool, watching() as g, torch.no_grad():
        pool.submit(model.eval).result()
        model(batch())
    assert {violation.rule for violation in g.violations} == {"random-forward"}


def test_train_has_the_same_signature_and_effect() -> None:
    model = Frozen().eval()
    signature = inspect.signature(model.train)
    with guard(model):
        assert inspect.signature(model.train) == signature
        assert model.train() is model
        assert model.train(mode=False) is model
        with pytest.raises(ValueError, match="training mode is expected to be boolean"):
            nn.Linear(1, 1).train("yes")  # type: ignore[arg-type]
        model.train()
    assert [name for name, part in model.named_modules() if part.training] == ["", "body", "drop", "head"]


def test_train_is_observed_under_a_mock() -> None:
    model = Net().eval()
    with watching(model) as g, torch.no_grad(), mock.patch.object(model, "train", wraps=model.train) as train:
        model.train()
        model(batch())
    train.assert_called_once_with()
    assert since(g) == "model.train()"


def test_a_compiled_function_that_switches_compiles_once() -> None:
    torch._dynamo.reset()
    model, counter = Net().eval(), CompileCounter()

    def switch_and_run(x: Tensor) -> Tensor:
        model.eval()
        y: Tensor = model(x)
        return y

    compiled = torch.compile(switch_and_run, backend=counter, fullgraph=True)
    with torch.no_grad():
        with guard(model):
            compiled(batch())
            compiled(batch())
        compiled(batch())
    assert counter.frame_count == 1
