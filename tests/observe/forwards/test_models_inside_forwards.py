"""Models that run inside another forward without being submodules: passed as arguments, or unregistered."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_evalmode.guards import Guard
from pytest_evalmode.guards.config import GuardConfig
from tests.nets import Net, batch, only, rules, watching


class Flips(nn.Module):
    """Test-time augmentation of a model that is passed as an argument."""

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = (model(x) + model(x.flip(0))) / 2
        return y


class PassesOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flips = Flips()

    def forward(self, *arguments: object) -> Tensor:
        y: Tensor = self.flips(*arguments)
        return y


class Distills(nn.Module):
    """A loss with weights whose arguments are two models: one in a list, one in a dict passed by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2)

    def forward(self, students: list[nn.Module], x: Tensor, *, teacher: dict[str, nn.Module]) -> Tensor:
        y: Tensor = self.scale(students[0](x) - teacher["it"](x))
        return y


class Ensemble(nn.Module):
    """Holds its members in a plain tuple."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Applies(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Drops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x))


def passed(model: nn.Module) -> None:
    Flips().eval()(model, batch())


def passed_to_a_model(model: nn.Module) -> None:
    Distills().eval()([model], batch(), teacher={"it": Net().eval()})


def passed_on(model: nn.Module) -> None:
    PassesOn().eval()(model, batch())


def in_a_list(model: nn.Module) -> None:
    Ensemble(model, model).eval()(batch())


def in_a_closure(model: nn.Module) -> None:
    Applies(lambda x: model(x)).eval()(batch())


AS_ARGUMENT = pytest.mark.parametrize("run", [passed, passed_to_a_model, passed_on])
UNREGISTERED = pytest.mark.parametrize("run", [in_a_list, in_a_closure])
EITHER = pytest.mark.parametrize("run", [passed, passed_to_a_model, passed_on, in_a_list, in_a_closure])
STRICT = pytest.mark.parametrize("strict", [False, True])

Run = Callable[[nn.Module], None]


def guarded(run: Run, model: nn.Module, *, strict: bool = False, grad: bool = False) -> Guard:
    with watching(strict=strict) as g:
        g.watch(model, "net")
        with torch.set_grad_enabled(grad):
            run(model)
    return g


@AS_ARGUMENT
@STRICT
def test_a_model_passed_as_an_argument_is_judged_by_itself(run: Run, strict: bool) -> None:
    assert not rules(guarded(run, Net().eval(), strict=strict))
    g = guarded(run, Net(), strict=strict)
    assert rules(g) == {"train-mode", "state-mutated"}
    training, changed = g.violations
    assert training.model == changed.model == "net"
    assert training.subjects == ("net.bn (BatchNorm1d)", "net.drop (Dropout)")
    assert training.remedy == changed.remedy.replace("model", "net").partition(";")[0] + " before the first forward"
    assert training.at is not None
    assert "model(x)" in training.at.source or "students[0](x)" in training.at.source


@EITHER
@STRICT
def test_autograd_is_reported(run: Run, strict: bool) -> None:
    assert "grad-mode" in rules(guarded(run, Net().eval(), strict=strict, grad=True))
    assert "grad-mode" not in rules(guarded(run, Net().eval(), strict=strict))


@EITHER
def test_a_frozen_model_does_not_record(run: Run) -> None:
    if run is not passed_to_a_model:  # the loss has weights of its own
        assert not rules(guarded(run, Net().eval().requires_grad_(False), grad=True))


@EITHER
@STRICT
def test_draws_are_reported_once(run: Run, strict: bool) -> None:
    g = guarded(run, Drops().eval(), strict=strict)
    (violation,) = [v for v in g.violations if v.rule == "random-forward"]
    assert violation.cause is not None
    assert violation.cause.source == "return F.dropout(super().forward(x))"
    assert violation.subjects[0].endswith("(Drops)")


@EITHER
def test_the_inner_model_counts_as_having_run(run: Run) -> None:
    g = guarded(run, Net().eval())
    (net,) = [model for model in g.window.models if model.name == "net"]
    assert net.forwards >= 1


@EITHER
def test_strict_sees_that_a_model_ran(run: Run) -> None:
    g = Guard(config=GuardConfig(strict=True))
    g.window.open()
    with torch.no_grad():
        run(Net().eval())
    g.window.close(needs_forward=True)
    assert "no-forward" not in rules(g)


@UNREGISTERED
def test_the_message_says_that_eval_does_not_reach_an_unregistered_model(run: Run) -> None:
    g = guarded(run, Net())
    training, changed = g.violations
    assert "it is not a registered submodule" in training.finding
    assert " of 6 modules " in training.finding
    assert changed.at is not None
    assert changed.remedy.startswith("call model.eval()")
    assert "unregistered-module" in rules(guarded(run, Net().eval(), strict=True))


def test_an_unregistered_head_of_a_frozen_encoder_that_records() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(4, 4).requires_grad_(False)
            self.heads = [nn.Linear(4, 2)]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.heads[0](self.encoder(x))
            return y.argmax(-1)

    model = Classifier().eval()
    model.heads[0].eval()
    with watching() as g:
        model(batch())
    assert "require grad" in only(g, "grad-mode").finding
    model.heads[0].requires_grad_(False)
    with watching() as g:
        model(batch())
    assert not rules(g)


@STRICT
def test_a_layer_without_weights_passed_as_an_argument_is_part_of_the_forward(strict: bool) -> None:
    class Activates(Net):
        def forward(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
            assert activation is not None
            y: Tensor = activation(super().forward(x))
            return y

    with watching(strict=strict) as g, torch.no_grad():
        Activates().eval()(batch(), nn.ReLU())
    assert not rules(g)
    assert [model.name for model in g.window.models] == ["Activates"]


class DropsInput(nn.Module):
    """Has a layer of its own, and draws before or after it runs a model passed as an argument."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)
        self.after = after

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        x = self.scale(x)
        y: Tensor = model(x if self.after else F.dropout(x))
        return F.dropout(y) if self.after else y


@pytest.mark.parametrize("after", [False, True])
def test_a_draw_around_an_inner_model_is_blamed_on_the_outer_one(after: bool) -> None:
    with watching() as g, torch.no_grad():
        DropsInput(after=after).eval()(Net().eval(), batch())
    assert only(g, "random-forward").subjects == ("DropsInput (DropsInput)",)


def test_an_exception_in_an_inner_model_ends_both_forwards() -> None:
    class Breaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError

    with watching() as g, torch.no_grad():
        with pytest.raises(KeyError):
            passed(Breaks().eval())
        g.watch(Net(), "net")(batch())
    assert {(v.rule, v.model) for v in g.violations} == {("train-mode", "net"), ("state-mutated", "net")}


@STRICT
def test_a_mock_of_a_tensor_is_not_a_tensor(strict: bool) -> None:
    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.note = mock.MagicMock(spec=Tensor)

        def forward(self, x: Tensor) -> object:
            return self.net(x)

    model = Stubbed().eval()
    for grad in (False, True):
        stub = mock.patch.object(model.net, "forward", return_value=mock.MagicMock(spec=Tensor))
        with watching(strict=strict) as g, torch.set_grad_enabled(grad), stub:
            model(mock.MagicMock(spec=Tensor))
        assert rules(g) == ({"grad-mode"} if grad else set())  # it did not record: the mock does not use the weights
