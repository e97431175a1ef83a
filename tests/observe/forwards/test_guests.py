"""Models that run inside what is no model: handed to it, or kept where nobody registers them."""

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
    """Test-time augmentation of a model that it is handed."""

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = (model(x) + model(x.flip(0))) / 2
        return y


class Passes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flips = Flips()

    def forward(self, *arguments: object) -> Tensor:
        y: Tensor = self.flips(*arguments)
        return y


class Distils(nn.Module):
    """A loss with weights, handed two models: one in a list, one in a dict, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2)

    def forward(self, students: list[nn.Module], x: Tensor, *, teacher: dict[str, nn.Module]) -> Tensor:
        y: Tensor = self.scale(students[0](x) - teacher["it"](x))
        return y


class Ensemble(nn.Module):
    """Keeps its members in a plain list."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Applies(nn.Module):
    """Calls whatever function it was given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Drops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x))


def handed(model: nn.Module) -> None:
    Flips().eval()(model, batch())


def handed_to_a_model(model: nn.Module) -> None:
    Distils().eval()([model], batch(), teacher={"it": Net().eval()})


def handed_on(model: nn.Module) -> None:
    Passes().eval()(model, batch())


def in_a_list(model: nn.Module) -> None:
    Ensemble(model, model).eval()(batch())


def in_a_closure(model: nn.Module) -> None:
    Applies(lambda x: model(x)).eval()(batch())


HANDED = pytest.mark.parametrize("run", [handed, handed_to_a_model, handed_on])
KEPT = pytest.mark.parametrize("run", [in_a_list, in_a_closure])
EACH = pytest.mark.parametrize("run", [handed, handed_to_a_model, handed_on, in_a_list, in_a_closure])
STRICT = pytest.mark.parametrize("strict", [False, True])

Run = Callable[[nn.Module], None]


def found(run: Run, model: nn.Module, *, strict: bool = False, grad: bool = False) -> Guard:
    with watching(strict=strict) as g:
        g.watch(model, "net")
        with torch.set_grad_enabled(grad):
            run(model)
    return g


@HANDED
@STRICT
def test_one_that_is_handed_in_is_a_model_of_its_own(run: Run, strict: bool) -> None:
    assert not rules(found(run, Net().eval(), strict=strict))
    g = found(run, Net(), strict=strict)
    assert rules(g) == {"train-mode", "state-mutated"}
    training, changed = g.violations
    assert training.model == changed.model == "net"
    assert training.subjects == ("net.bn (BatchNorm1d)", "net.drop (Dropout)")
    assert training.remedy == changed.remedy.replace("model", "net").partition(";")[0] + " before the first forward"
    assert training.at is not None
    assert "model(x)" in training.at.source or "students[0](x)" in training.at.source


@EACH
@STRICT
def test_autograd_is_seen(run: Run, strict: bool) -> None:
    assert "grad-mode" in rules(found(run, Net().eval(), strict=strict, grad=True))
    assert "grad-mode" not in rules(found(run, Net().eval(), strict=strict))


@EACH
def test_a_frozen_one_records_nothing(run: Run) -> None:
    if run is not handed_to_a_model:  # that has weights of its own
        assert not rules(found(run, Net().eval().requires_grad_(False), grad=True))


@EACH
@STRICT
def test_draws_are_seen_and_told_once(run: Run, strict: bool) -> None:
    g = found(run, Drops().eval(), strict=strict)
    (violation,) = [v for v in g.violations if v.rule == "random-forward"]
    assert violation.cause is not None
    assert violation.cause.source == "return F.dropout(super().forward(x))"
    assert violation.subjects[0].endswith("(Drops)")


@EACH
def test_it_counts_as_a_forward(run: Run) -> None:
    g = found(run, Net().eval())
    (net,) = [model for model in g.models if model.name == "net"]
    assert net.forwards >= 1


@EACH
def test_a_model_ran(run: Run) -> None:
    g = Guard(config=GuardConfig(strict=True))
    g.open()
    with torch.no_grad():
        run(Net().eval())
    g.close(needs_forward=True)
    assert "no-forward" not in rules(g)


@KEPT
def test_what_cannot_be_reached_is_told_so(run: Run) -> None:
    g = found(run, Net())
    training, changed = g.violations
    assert "it is no submodule" in training.finding
    assert " of 6 modules " in training.finding
    assert changed.at is not None
    assert changed.remedy.startswith("call model.eval()")
    assert "unregistered-module" in rules(found(run, Net().eval(), strict=True))


def test_a_hidden_head_that_records_beside_a_frozen_encoder() -> None:
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
def test_a_layer_without_weights_that_is_handed_in_is_part_of_the_forward(strict: bool) -> None:
    class Activates(Net):
        def forward(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
            assert activation is not None
            y: Tensor = activation(super().forward(x))
            return y

    with watching(strict=strict) as g, torch.no_grad():
        Activates().eval()(batch(), nn.ReLU())
    assert not rules(g)
    assert [model.name for model in g.models] == ["Activates"]


class DropsInput(nn.Module):
    """Has a layer of its own, and draws before and after the model that it is handed."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)
        self.after = after

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        x = self.scale(x)
        y: Tensor = model(x if self.after else F.dropout(x))
        return F.dropout(y) if self.after else y


@pytest.mark.parametrize("after", [False, True])
def test_a_draw_beside_one_that_is_handed_in_is_that_of_the_whole(after: bool) -> None:
    with watching() as g, torch.no_grad():
        DropsInput(after=after).eval()(Net().eval(), batch())
    assert only(g, "random-forward").subjects == ("DropsInput (DropsInput)",)


def test_an_exception_in_one_that_is_handed_in_ends_both() -> None:
    class Breaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError

    with watching() as g, torch.no_grad():
        with pytest.raises(KeyError):
            handed(Breaks().eval())
        g.watch(Net(), "net")(batch())
    assert {(v.rule, v.model) for v in g.violations} == {("train-mode", "net"), ("state-mutated", "net")}


@STRICT
def test_a_mock_of_a_tensor_is_none(strict: bool) -> None:
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
        assert rules(g) == ({"grad-mode"} if grad else set())  # the weights that autograd is on for were not used
