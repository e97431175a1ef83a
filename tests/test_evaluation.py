"""`inference()`: eval mode, autograd off, guarded, and everything restored on exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import Guard, HygieneError, inference
from tests.nets import Net, batch


class Mixed(nn.Module):
    """A model with one part in training mode and one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.norm = nn.BatchNorm1d(2).eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.net(x))
        return out


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad])
def test_inference_switches_and_restores(grad: Callable[[], Any]) -> None:
    model = Mixed()
    before = modes(model)
    with grad():
        with inference(model) as g:
            assert isinstance(g, Guard)
            assert not any(modes(model))
            assert not torch.is_grad_enabled()
            assert not model(batch()).requires_grad
        assert torch.is_grad_enabled() == (grad is torch.enable_grad)
    assert modes(model) == before


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
def test_inference_restores_the_flags_after_an_exception(error: type[BaseException]) -> None:
    model = Mixed()
    before = modes(model)
    with pytest.raises(error), inference(model):
        raise error
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_inference_restores_the_flags_if_eval_fails() -> None:
    class Stubborn(Mixed):
        def train(self, mode: bool = True) -> Self:
            super().train(mode)
            raise RuntimeError("not now")

    model = Stubborn()
    before = modes(model)
    with pytest.raises(RuntimeError, match="not now"), inference(model):
        pass
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_inference_is_guarded() -> None:
    model = Mixed()
    before = modes(model)
    with pytest.raises(HygieneError, match="state-mutated"), inference(model):
        model.net.head.bias.add_(1)
    assert modes(model) == before


def test_inference_reports_a_module_that_is_switched_back() -> None:
    model = Mixed()
    with pytest.raises(HygieneError, match="train-mode"), inference(model):
        model(model.net.drop.train()(batch()))
    assert model.net.drop.training


def test_inference_does_not_switch_an_exported_model() -> None:
    exported = torch.export.export(Net().eval(), (batch(),)).module()
    before = modes(exported)
    with inference(exported):
        exported(batch())
    assert modes(exported) == before


def test_inference_of_a_scripted_model() -> None:
    scripted = torch.jit.script(Net())
    with inference(scripted):
        scripted(batch())
    assert scripted.training
    frozen = torch.jit.freeze(torch.jit.script(Net().eval()))
    with inference(frozen):
        frozen(batch())
    assert not frozen.training


def test_inference_of_a_compiled_model() -> None:
    model: Any = torch.compile(Net(), backend="eager")
    with inference(model):
        model(batch())
    assert all(modes(model))


def test_inference_calls_an_overridden_train_method_once() -> None:
    calls: list[bool] = []

    class Counted(Net):
        def train(self, mode: bool = True) -> Counted:
            calls.append(mode)
            return super().train(mode)

    with inference(Counted()) as g:
        assert g.violations == []
    assert calls == [False]


def test_inference_of_a_part_of_a_model() -> None:
    model = Mixed()
    with inference(model.net):
        assert [name for name, m in model.named_modules() if m.training] == [""]
        model.net(batch())
    assert model.net.training
