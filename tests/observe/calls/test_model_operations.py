"""Optimizer steps and uses of an autograd graph: the line, the model, and what must not be reported."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad  # by its name, as many import it
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.checkpoint import checkpoint

from pytest_evalmode.observe.calls import model_operations
from pytest_evalmode.rules import Violation
from tests.nets import Net, batch, watching


def line_of(function: Any, text: str) -> str:
    lines, begin = inspect.getsourcelines(function)
    return f"test_model_operations.py:{next(i for i, line in enumerate(lines, begin) if text in line)}"


def violation_of(model: nn.Module, run: Any, rule: str) -> Violation:
    with watching(model) as g:
        run(model)
    return next(violation for violation in g.violations if violation.rule == rule)


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(batch()).sum().backward()
    optimizer.step()  # here


def saliency(model: nn.Module) -> None:
    images = batch().requires_grad_()
    model(images)[:, 0].sum().backward()  # here


def attack(model: nn.Module) -> None:
    images = batch().requires_grad_()
    grad(model(images).sum() * 2, images)  # here


def forgets_no_grad(model: nn.Module) -> None:
    model(batch())


def penalizes_weights(model: nn.Module) -> None:
    """The weights get gradients, but not through an output of the model."""
    model(batch())
    next(model.parameters()).square().sum().backward()  # type: ignore[no-untyped-call]


def trains_another_model(model: nn.Module) -> None:
    model(batch())
    train(nn.Linear(4, 1))


def test_an_optimizer_step_is_reported() -> None:
    violation = violation_of(Net().eval(), train, "state-mutated")
    assert violation.details["trained"].startswith("SGD.step() at ")
    assert violation.details["trained"].endswith(line_of(train, "# here"))
    assert "evalmode.paused()" in violation.remedy


@pytest.mark.parametrize(("run", "by"), [(saliency, "backward()"), (attack, "autograd.grad()")])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_used_graph_is_reported(run: Any, by: str, frozen: bool) -> None:
    violation = violation_of(Net().eval().requires_grad_(not frozen), run, "grad-mode")
    assert violation.details["used"].startswith(f"{by} at ")
    assert violation.details["used"].endswith(line_of(run, "# here"))
    assert "allow=['grad-mode']" in violation.remedy
    assert "eval()" not in violation.remedy


@pytest.mark.parametrize("run", [forgets_no_grad, penalizes_weights, trains_another_model])
def test_an_unused_graph_is_not_reported(run: Any) -> None:
    violation = violation_of(Net().eval(), run, "grad-mode")
    assert "used" not in violation.details
    assert "trained" not in violation.details
    assert violation.remedy == "call the model under torch.inference_mode() or torch.no_grad()"


def test_a_graph_is_searched_until_its_models_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, images = Net().eval(), nn.Linear(4, 1), batch().requires_grad_()
    visited: list[object] = []

    def node_metadata(node: Any) -> Any:
        visited.append(node)
        return node.metadata

    with watching(first, second) as g:
        output = first(images).sum()
        monkeypatch.setattr(model_operations, "node_metadata", node_metadata)
        for _ in range(3):
            grad(output, images, retain_graph=True)
        assert len(visited) == 2  # the sum and the output
        output.backward(retain_graph=True)
        grad(output + second(images).sum(), images)
        grad(second(images).sum(), images)
    calls = [(call.name, call.models) for call in g.window.trace.gradients]
    assert calls == [("autograd.grad()", ("Net",)), ("backward()", ("Net",)), ("autograd.grad()", ("Linear",))]


def test_a_graph_without_models_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_operations, "node_metadata", None)
    images = batch().requires_grad_()
    with watching(Net()) as g:
        grad(images.square().sum(), images)
    assert g.violations == []


def test_each_part_of_a_window_has_its_first_call() -> None:
    with watching(model := Net().eval()) as g:
        with g.allow("grad-mode"):
            attack(model)
        attack(model)
    (violation,) = g.violations
    assert violation.details["used"].startswith("autograd.grad() at ")


def test_training_in_a_pause_is_not_reported() -> None:
    model = Net().eval()
    with watching(model) as g:
        with g.paused():
            train(model)
        forgets_no_grad(model)
    (violation,) = g.violations
    assert "trained" not in violation.details


def test_the_patch_and_the_hook_are_removed_after_the_window() -> None:
    engine = vars(torch.autograd)["_engine_run_backward"]
    hooks = _global_optimizer_post_hooks
    with watching(Net()):
        assert vars(torch.autograd)["_engine_run_backward"] is not engine
        assert len(hooks) == 1
    assert vars(torch.autograd)["_engine_run_backward"] is engine
    assert not hooks


def test_gradients_are_the_same_with_a_guard() -> None:
    model, images = Net().eval(), batch()

    def compute() -> list[Tensor]:
        return list(grad(model(images).sum(), list(model.parameters())))

    expected = compute()
    with watching(model):
        guarded = compute()
    assert all(map(torch.equal, expected, guarded))


class Checkpointed(nn.Module):
    """Computes a part of its forward again in `backward()`."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 1)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(checkpoint(self.body, x, use_reentrant=self.use_reentrant))
        return y


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_forward_that_a_checkpoint_repeats_is_not_counted(use_reentrant: bool, strict: bool) -> None:
    model = Checkpointed(use_reentrant).eval()
    with watching(model, strict=strict) as g:
        for _ in range(2):
            model(batch().requires_grad_()).sum().backward()
    (violation,) = (each for each in g.violations if each.rule == "grad-mode")
    assert violation.count == 2
    assert g.window.trace.forwards in (0, 2)  # known only under strict


def test_a_checkpoint_that_the_user_calls_is_a_forward() -> None:
    model = nn.Linear(4, 1).eval()
    with watching(model) as g:
        checkpoint(model, batch(), use_reentrant=False)
    assert violation_count(g.violations) == 1


def violation_count(violations: list[Violation]) -> int:
    (violation,) = violations
    return violation.count


def test_grad_mode_that_recorded_nothing_is_worded_so() -> None:
    model = nn.Linear(4, 1).eval().requires_grad_(False)
    with watching(model, strict=True) as g:
        model(batch())
    (violation,) = g.violations
    assert violation.message == "Linear ran once with grad mode on"
    assert violation.finding == "Linear ran with grad mode on: nothing requires grad"
    with watching(model, strict=True) as g:
        model(batch().requires_grad_())
    (violation,) = g.violations
    assert violation.message == "Linear ran once with autograd recording"
