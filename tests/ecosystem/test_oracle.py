"""The oracle of the ecosystem check: each default rule is found for a fault, and not for a clean model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

pytest.importorskip("ecosystem", reason="the sdist has no ecosystem check")

from ecosystem.oracle import judged


def clean_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval().requires_grad_(False)


def rules(model: nn.Module) -> set[str]:
    with judged() as found:
        model(torch.ones(2, 3))
    return found


def test_clean() -> None:
    assert rules(clean_model()) == set()


@pytest.mark.parametrize("index", [1, 2])
def test_training_mode_of_a_module_that_depends_on_it(index: int) -> None:
    model = clean_model()
    model[index].train()
    assert "train-mode" in rules(model)


def test_a_class_that_calls_forward_itself() -> None:
    class Direct(nn.Linear):
        def __call__(self, x: Tensor) -> Tensor:
            return self.forward(x)

    call = Direct.__call__
    assert rules(Direct(3, 3).eval()) == {"grad-mode"}
    assert Direct.__call__ is call


def test_training_mode_of_user_code_that_depends_on_it() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if self.training else x

    assert rules(Noise()) == {"train-mode"}


@pytest.mark.parametrize("module", [nn.Dropout(0), nn.ReLU(), nn.InstanceNorm1d(2), nn.Identity()])
def test_training_mode_that_changes_nothing(module: nn.Module) -> None:
    assert rules(module.train()) == set()


def test_autograd_recording() -> None:
    model = clean_model().requires_grad_()
    assert rules(model) == {"grad-mode"}
    with torch.no_grad():
        assert rules(model) == set()


def test_running_statistics_changed() -> None:
    model = clean_model().train()
    assert rules(model) == {"train-mode", "state-mutated"}


def test_weight_changed_after_the_forward() -> None:
    model = clean_model()
    with judged() as found:
        model(torch.ones(2, 3))
        next(model.parameters()).add_(1)
    assert found == {"state-mutated"}


def test_weights_of_another_dtype() -> None:
    model = clean_model()
    with judged() as found:
        model(torch.ones(2, 3))
        model.double()
    assert found == {"state-mutated"}


def test_weight_changed_before_the_forward() -> None:
    model = clean_model()
    with judged() as found:
        next(model.parameters()).add_(1)
        model(torch.ones(2, 3))
    assert found == set()


def test_batch_statistics_in_eval_mode() -> None:
    assert rules(nn.BatchNorm1d(3, track_running_stats=False, affine=False).eval()) == {"batch-stats"}


def test_random_forward_in_eval_mode() -> None:
    class Unconditional(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return dropout(super().forward(x), training=True)

    assert rules(Unconditional(3, 3).eval().requires_grad_(False)) == {"random-forward"}


def test_call_is_restored() -> None:
    before = nn.Module.__call__
    with pytest.raises(ZeroDivisionError), judged():
        raise ZeroDivisionError
    assert nn.Module.__call__ is before
