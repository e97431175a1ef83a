"""`guard(strict=True)`: each fault beside what looks like it."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import HygieneError, guard
from tests.nets import Net, batch, only, rules, watching

OWN_TORCH = torch.Generator().manual_seed(0)
OWN_PYTHON = random.Random(0)
OWN_NUMPY = np.random.default_rng(0)


class Doing(nn.Module):
    """A model that does something with what it has computed."""

    def __init__(self, do: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.do = do
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> object:
        return self.do(self.head(x))


class Transform(nn.Module):
    """One that holds no parameters."""

    def __init__(self, do: Callable[..., object]) -> None:
        super().__init__()
        self.do = do

    def forward(self, *args: Any, **kwargs: Any) -> object:
        return self.do(*args, **kwargs)


@torch.no_grad()
def run(model: nn.Module, *args: Any, **kwargs: Any) -> set[str]:
    """The rules that one forward of a model in eval mode breaks."""
    with watching(strict=True) as g:
        model.eval()(*(args or (batch(),)), **kwargs)
    return rules(g)


def each(table: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=table)


# --- grad-mode


def frozen() -> nn.Module:
    return Net().eval().requires_grad_(False)


def test_a_frozen_model_in_grad_mode() -> None:
    with watching(strict=True) as g:
        frozen()(batch())
    violation = only(g, "grad-mode")
    assert violation.finding == "Net (Net) recorded autograd: grad mode was on"
    with guard():
        frozen()(batch())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_frozen_model_without(off: Callable[[], Any]) -> None:
    with guard(strict=True), off():
        frozen()(batch())


def test_grad_mode_is_nothing_to_what_holds_no_parameters() -> None:
    with guard(strict=True), torch.no_grad():
        logits = Net().eval()(batch())
        with torch.enable_grad():
            nn.CrossEntropyLoss()(logits, torch.zeros(8, dtype=torch.long))
            Transform(torch.relu)(logits)


def test_a_forward_that_turns_grad_mode_off_itself() -> None:
    class Careful(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with guard(strict=True):
        Careful().eval().requires_grad_(False)(batch())


def test_a_frozen_forward_that_turns_grad_mode_off_for_a_part() -> None:
    class Masking(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                mask = x != 0
            return super().forward(x * mask)

    with watching(strict=True) as g:
        Masking().eval().requires_grad_(False)(batch())
    assert only(g, "grad-mode").finding == "Masking (Masking) recorded autograd: grad mode was on"


# --- random-forward

DRAWS: dict[str, Callable[[Tensor], object]] = {
    "Python's": lambda h: h * random.random(),
    "Python's shuffle": lambda h: random.shuffle([1, 2, 3]),
    "NumPy's": lambda h: h * float(np.random.rand()),
    "NumPy's permutation": lambda h: h[np.random.permutation(len(h))],
    "torch's": lambda h: h + torch.randn_like(h),
}
QUIET: dict[str, Callable[[Tensor], object]] = {
    "own of Python": lambda h: h * OWN_PYTHON.random(),
    "own of NumPy": lambda h: h * float(OWN_NUMPY.random()),
    "own of torch": lambda h: h + torch.rand(h.shape, generator=OWN_TORCH),
    "looking": lambda h: (random.getstate(), np.random.get_state(), torch.get_rng_state(), h)[-1],
}


@each(DRAWS)
@pytest.mark.parametrize("kind", [Doing, Transform], ids=["model", "augmentation"])
def test_draws(case: Callable[[Tensor], object], kind: type[Doing | Transform]) -> None:
    assert run(kind(case)) == {"random-forward"}


@each(QUIET)
@pytest.mark.parametrize("kind", [Doing, Transform], ids=["model", "augmentation"])
def test_own_generators(case: Callable[[Tensor], object], kind: type[Doing | Transform]) -> None:
    assert run(kind(case)) == set()


def test_only_torchs_generators_of_models_are_of_the_default_rules() -> None:
    with guard(), torch.no_grad():
        Doing(DRAWS["Python's"]).eval()(batch())
        Transform(DRAWS["torch's"])(batch())


def test_draws_between_forwards() -> None:
    model = Net().eval()
    with guard(strict=True), torch.no_grad():
        for _ in range(2):
            model(batch() * random.random() * float(np.random.rand()))


@pytest.mark.parametrize("whose", ["Python's", "NumPy's"])
def test_the_generator_that_moved_is_named_and_not_torchs(whose: str) -> None:
    with watching(strict=True) as g, torch.no_grad():
        Doing(DRAWS[whose]).eval()(batch())
    finding = only(g, "random-forward").finding
    assert whose.removesuffix("'s") in finding
    assert "torch's" not in finding


# --- input-mutated


def looped() -> list[Any]:
    """A list that contains itself."""
    items: list[Any] = [batch()]
    items.append(items)
    return items


WRITES: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]], str]] = {
    "an argument": (lambda x: x.add_(1), lambda: (batch(),), "argument 0"),
    "the second": (lambda x, y: y.add_(x), lambda: (batch(), batch()), "argument 1"),
    "by index": (lambda x: x.__setitem__(x < 9, 7.0), lambda: (batch(),), "argument 0"),
    "a view": (lambda x: x.flatten().relu_(), lambda: (-batch().abs() - 1,), "argument 0"),
    "its detached data": (lambda x: x.data.zero_(), lambda: (torch.ones(2, 4),), "argument 0"),
    "by NumPy": (lambda x: x.numpy().fill(3), lambda: (torch.ones(2, 4),), "argument 0"),
    "in a list": (lambda xs: xs[1].add_(1), lambda: ([batch(), batch()],), "argument 0[1]"),
    "in a tuple": (lambda xs: xs[0].add_(1), lambda: ((batch(),),), "argument 0[0]"),
    "in a dict": (lambda d: d["x"].add_(1), lambda: ({"x": batch()},), "argument 0['x']"),
    "deep in": (lambda d: d["a"][0].add_(1), lambda: ({"a": [batch()]},), "argument 0['a'][0]"),
    "in a list that contains itself": (lambda xs: xs[0].add_(1), lambda: (looped(),), "argument 0[0]"),
}


@each(WRITES)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_input_written_into(case: Any, grad: Callable[[], Any]) -> None:
    do, inputs, name = case
    given = inputs()
    with watching(strict=True) as g, grad():
        Transform(do)(*given)
    violation = only(g, "input-mutated")
    assert violation.details["arguments"] == [name]
    assert violation.at is not None
    assert "Transform(do)(*given)" in violation.at.source


def test_a_keyword_argument_written_into() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    with watching(strict=True) as g:
        Transform(lambda *, mask: mask.logical_not_())(mask=mask)
    assert only(g, "input-mutated").details["arguments"] == ["argument 'mask'"]


def test_a_layer_that_works_in_place_on_the_input() -> None:
    layers = nn.ReLU(inplace=True), nn.Linear(4, 2)
    assert run(nn.Sequential(*layers), -torch.ones(2, 4)) == {"input-mutated"}
    assert run(nn.Sequential(nn.Linear(4, 4), *layers), -torch.ones(2, 4)) == set()


Call = Callable[[nn.Module, torch.Tensor], object]

TEMPORARIES: dict[str, Call] = {
    "a clone": lambda model, x: model(x.clone()),
    "an expression": lambda model, x: model(-x),
    "by name": lambda model, x: model(x=x + 1),
    "in a list": lambda model, x: model([x.clone()]),
    "in a dict": lambda model, x: model({"x": [x.clone()]}),
    "in a list, by a star": lambda model, x: model(*[x.clone()]),
    "partial": lambda model, x: functools.partial(model, x.clone())(),
    "mapped": lambda model, x: list(map(model, [x.clone()])),
    "functional": lambda model, x: torch.func.functional_call(model, {}, (x.clone(),)),
    "inside another": lambda model, x: nn.Sequential(model)(x.clone()),
    "again and again": lambda model, x: [model(x.clone()) for _ in range(3)],
}


class Box:
    kept: torch.Tensor


def boxed(x: torch.Tensor) -> torch.Tensor:
    Box.kept = x.clone()
    return Box.kept


HELD: dict[str, Call] = {
    "by a variable": lambda model, x: model(x),
    "by name": lambda model, x: model(x=x),
    "in a list": lambda model, x: model([x]),
    "functional": lambda model, x: torch.func.functional_call(model, {}, (x,)),
    "a view": lambda model, x: model(x[:1]),
    "its detached self": lambda model, x: model(x.detach()),
    "in an object": lambda model, x: model(boxed(x)),
    "by a walrus": lambda model, x: (model(kept := x.clone()), kept),
}


class Overwrites(nn.Module):
    def forward(self, x: Any) -> Any:
        inner = x
        while not isinstance(inner, torch.Tensor):
            inner = next(iter(inner.values() if isinstance(inner, dict) else inner))
        inner.fill_(7)
        return {"same": x}


@each(TEMPORARIES)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_a_temporary_may_be_used_up(case: Call, grad: Callable[[], Any]) -> None:
    x = batch()
    with guard(strict=True), grad():
        case(Overwrites(), x)


@each(HELD)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_what_somebody_holds_may_not(case: Call, grad: Callable[[], Any]) -> None:
    x = batch()
    with watching(strict=True) as g, grad():
        case(Overwrites(), x)
    assert "input-mutated" in rules(g)


class Cache:
    """What generation hands along: an object of its own kind."""

    def __init__(self) -> None:
        self.keys = torch.zeros(4)


KEEPS: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]]]] = {
    "a clone": (lambda x: x.clone().add_(1), lambda: (batch(),)),
    "the same values": (lambda x: x.mul_(1), lambda: (torch.ones(2, 4),)),
    "a cache": (lambda cache: cache.keys.add_(1), lambda: (Cache(),)),
    "a cache in a list": (lambda caches: caches[0].keys.add_(1), lambda: ([Cache()],)),
    "the list itself": (lambda xs: xs.append(0), lambda: ([batch()],)),
    "NaN": (lambda x: x + 1, lambda: (torch.full((2, 4), float("nan")),)),
    "expanded": (lambda x: x + 1, lambda: (torch.ones(1, 4).expand(8, 4),)),
    "nothing": (lambda: None, lambda: ()),
}


@each(KEEPS)
def test_input_left_alone(case: Any) -> None:
    do, inputs = case
    with guard(strict=True), torch.no_grad():
        Transform(do)(*inputs())


@pytest.mark.parametrize("strict", [False, True])
def test_a_list_that_contains_itself(strict: bool) -> None:
    """Autograd is on over a frozen model: whether an input requires grad is looked for in the list."""
    model = nn.Sequential(Transform(lambda xs: xs[0]), nn.Linear(4, 2)).eval().requires_grad_(False)
    with guard(strict=strict, allow="grad-mode"):
        model(looped())


def test_what_the_caller_writes_is_the_callers() -> None:
    x, model = batch(), Net().eval()
    with guard(strict=True), torch.no_grad():
        model(x)
        x.add_(1)
        model(x)


# --- unregistered-module


@dataclass
class Tools:
    layer: nn.Module


class Hiding(nn.Module):
    """Keeps modules where `eval()` does not find them."""

    def __init__(self, hidden: object, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden = hidden
        self.use = use
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.head(self.use(self.hidden, x))
        return h


class RegistersLate(nn.Module):
    """Makes a part of itself in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Softmax(-1) if self.training else nn.Dropout().eval()
        return self.late(self.head(x))


def linear() -> nn.Module:
    return nn.Linear(4, 4).eval()


def of_closure(layer: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda _, x: layer(x)


HIDDEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "list": (lambda: Hiding([linear()], lambda h, x: h[0](x)), "hidden[0] (Linear)"),
    "dict": (lambda: Hiding({"a": linear()}, lambda h, x: h["a"](x)), "hidden['a'] (Linear)"),
    "dataclass": (lambda: Hiding(Tools(linear()), lambda h, x: h.layer(x)), "(Linear)"),
    "closure": (lambda: Hiding(None, of_closure(linear())), "(Linear)"),
    "partial": (lambda: Hiding(functools.partial(linear()), lambda h, x: h(x)), "(Linear)"),
    "made in forward": (lambda: Hiding(None, lambda _, x: nn.Dropout().eval()(x)), "(Dropout)"),
    "a batch norm": (lambda: Hiding([nn.BatchNorm1d(4).eval()], lambda h, x: h[0](x)), "hidden[0] (BatchNorm1d)"),
    "beneath a stateless one": (
        lambda: Hiding([nn.Sequential(linear()).eval()], lambda h, x: h[0](x)),
        "hidden[0] (Sequential)",
    ),
}
REACHED: dict[str, Callable[[], nn.Module]] = {
    "stateless, made in forward": lambda: Hiding(None, lambda _, x: nn.GELU()(nn.Softmax(-1)(x))),
    "stateless, in a list": lambda: Hiding([nn.ReLU(), nn.Flatten()], lambda h, x: h[1](h[0](x))),
    "a loss": lambda: Hiding(None, lambda _, x: x * nn.MSELoss()(x, x * 2)),
    "a loss without weights": lambda: Hiding(None, lambda _, x: x * nn.CrossEntropyLoss()(x, x.softmax(-1))),
    "a norm without weights": lambda: Hiding(None, lambda _, x: nn.LayerNorm(4, elementwise_affine=False)(x)),
    "registered as it is made": RegistersLate,
    "in a ModuleList": lambda: Hiding(nn.ModuleList([linear()]), lambda h, x: h[0](x)),
    "in a ModuleDict": lambda: Hiding(nn.ModuleDict({"a": linear()}), lambda h, x: h["a"](x)),
}


@each(HIDDEN)
def test_hidden(case: tuple[Callable[[], nn.Module], str]) -> None:
    model, name = case[0]().eval(), case[1]
    with watching(strict=True) as g, torch.no_grad():
        model(batch())
        model(batch())
    violation = next(v for v in g.violations if v.rule == "unregistered-module")
    assert rules(g) == {"unregistered-module"}
    assert (len(violation.subjects), violation.count) == (1, 2)
    assert violation.subjects[0].endswith(name)
    assert violation.cause is not None


@each(REACHED)
def test_reached(case: Callable[[], nn.Module]) -> None:
    assert run(case()) == set()


def test_a_list_of_what_is_registered_elsewhere() -> None:
    encoder = nn.Linear(4, 4)
    assert run(nn.Sequential(encoder, Hiding([encoder], lambda h, x: h[0](x)))) == set()


def test_hidden_and_in_training_mode_breaks_both() -> None:
    assert run(Hiding([nn.Dropout()], lambda h, x: h[0](x))) == {"unregistered-module", "train-mode"}


# --- buffer-mutated


class Buffered(nn.Module):
    """A linear layer with a buffer that a forward may write to."""

    def __init__(self, write: Callable[[Buffered], object], *, persistent: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.write = write
        self.keys: Tensor
        self.register_buffer("keys", torch.zeros(4), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        h: Tensor = self.head(x) + sum(buffer.sum() for buffer in self.buffers())
        return h


def replace(model: Buffered) -> None:
    model.keys = torch.ones(2)


CHANGING: dict[str, Callable[[Buffered], object]] = {
    "in place": lambda model: model.keys.add_(1),
    "one element": lambda model: model.keys[2:3].fill_(1),
    "replaced": replace,
    "registered again": lambda model: model.register_buffer("keys", torch.ones(8), persistent=False),
    "gone": lambda model: model.register_buffer(model._buffers.popitem()[0] + "_now", torch.ones(4), persistent=False),
    "of another type": lambda model: model.register_buffer("keys", torch.zeros(4).char(), persistent=False),
}
STAYING: dict[str, Callable[[Buffered], object]] = {
    "read": lambda model: model.keys.sum(),
    "the same values": lambda model: model.keys.zero_(),
    "equal values": lambda model: model.register_buffer("keys", torch.zeros(4), persistent=False),
    "made when it is first needed": lambda model: model.register_buffer("more", torch.ones(8), persistent=False),
}


@each(CHANGING)
def test_buffer_that_is_not_saved(case: Callable[[Buffered], object]) -> None:
    assert run(Buffered(case)) == {"buffer-mutated"}


@each(STAYING)
def test_buffer_that_stays(case: Callable[[Buffered], object]) -> None:
    assert run(Buffered(case)) == set()


def test_buffer_that_appears_and_is_saved() -> None:
    assert run(Buffered(lambda model: model.register_buffer("more", torch.ones(8)))) == {"state-mutated"}


def test_buffer_that_is_saved_is_of_the_default_rules() -> None:
    assert run(Buffered(CHANGING["in place"], persistent=True)) == {"state-mutated"}
    with guard(), torch.no_grad():
        Buffered(CHANGING["in place"]).eval()(batch())


def test_buffer_declared_as_mutable() -> None:
    with guard(strict=True, mutable="keys"), torch.no_grad():
        Buffered(CHANGING["in place"]).eval()(batch())


# --- attribute-mutated, partial-load, leaks: through a guard


class Sticky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.attention_type = "block_sparse"

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 4:
            self.attention_type = "original_full"
        h: Tensor = self.head(x)
        return h


def test_sticky_attribute() -> None:
    model = nn.ModuleDict({"encoder": Sticky()}).eval()
    with watching(strict=True) as g, torch.no_grad():
        g.watch(model, "model")
        model["encoder"](batch(8, 4))
        model["encoder"](batch(2, 4))
        model["encoder"](batch(2, 4))
    violation = only(g, "attribute-mutated")
    assert violation.message == "model.encoder.attention_type: 'block_sparse' -> 'original_full'"
    assert violation.count == 1


def test_attribute_set_between_forwards() -> None:
    model = Sticky().eval()
    with guard(strict=True), torch.no_grad():
        for kind in ("a", "b"):
            model.attention_type = kind
            model(batch())


def test_a_partial_load_that_is_inspected_is_told_unless_allowed() -> None:
    def adapt() -> None:
        model = Net().eval()
        keys = model.load_state_dict({"head.bias": torch.zeros(2)}, strict=False)
        assert "head.weight" in keys.missing_keys
        with torch.no_grad():
            model(batch())

    headline = r"partial-load: Net was loaded with \d missing keys"
    with pytest.raises(HygieneError, match=headline) as caught, guard(strict=True):
        adapt()
    assert 'intended? guard(allow=["partial-load"])' in str(caught.value)
    assert "allow=['partial-load']" in str(caught.value)
    with guard(strict=True, allow="partial-load"):
        adapt()


def test_a_shared_model_left_in_training_mode() -> None:
    model = Net().eval()
    with watching(model, strict=True) as g:
        model.drop.train()
    violation = only(g, "model-leaked")
    assert violation.subjects == ("Net.drop.training",)
    assert "was False and is True" in violation.message


def test_a_model_of_ones_own_may_be_left_as_one_likes() -> None:
    with guard(strict=True), torch.no_grad():
        model = Net().eval()
        model(batch())
        model.train().requires_grad_(False)


def test_what_is_put_back_is_no_leak() -> None:
    model = Net().eval()
    with guard(model, strict=True), torch.no_grad():
        handle = model.register_forward_hook(lambda *_: None)
        model.requires_grad_(False).train()
        handle.remove()
        model.requires_grad_(True).eval()
        model(batch())


def test_a_global_flag() -> None:
    before = torch.get_default_dtype()
    try:
        with watching(strict=True) as g:
            torch.set_default_dtype(torch.float64)
        assert only(g, "global-leaked").message == "torch default_dtype was float32 and is float64"
    finally:
        torch.set_default_dtype(before)


# --- exemptions: for a part, and those that nothing needed


def test_allowed_for_a_part() -> None:
    model = Sticky().eval()
    with guard(strict=True) as g, torch.no_grad():
        model(batch())
        with g.allow("attribute-mutated", reason="falls back on short input"):
            model(batch(2, 4))
        model(batch())


def test_not_allowed_for_the_rest() -> None:
    augment = Transform(DRAWS["torch's"])
    with watching(strict=True) as g:
        with g.allow("random-forward"):
            augment(batch())
        augment(batch())
    assert only(g, "random-forward").count == 1


UNUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rule": ({"allow": "random-forward"}, 'allow="random-forward"'),
    "train": ({"train": "drop"}, 'train="drop"'),
    "mutable": ({"mutable": ["keys"]}, 'mutable="keys"'),
}


@each(UNUSED)
def test_nothing_needed_it(case: tuple[dict[str, Any], str]) -> None:
    arguments, subject = case
    with watching(strict=True, **arguments) as g, torch.no_grad():
        Net().eval()(batch())
    assert only(g, "unused-exemption").subjects == (subject,)
    with guard(**arguments), torch.no_grad():
        Net().eval()(batch())


@each(UNUSED)
def test_nothing_needed_it_in_its_part(case: tuple[dict[str, Any], str]) -> None:
    arguments = dict(case[0])
    allow = [arguments.pop("allow")] if "allow" in arguments else []
    with watching(strict=True) as g, torch.no_grad():
        with g.allow(*allow, **arguments):
            Net().eval()(batch())
        Transform(torch.relu)(batch())
    assert only(g, "unused-exemption").subjects == (case[1],)


def test_an_exemption_that_may_yet_be_needed_is_not_judged() -> None:
    with guard(strict=True, train="drop") as g, torch.no_grad():
        model = Net().eval()
        model(batch())
        g.check()
        model.drop.train()(batch())


def test_a_block_that_failed_may_have_needed_its_exemption() -> None:
    def block() -> None:
        with guard(strict=True, train="drop"):
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        block()
    assert not hasattr(caught.value, "__notes__")


def test_no_forward_is_asked_of_marked_tests_alone() -> None:
    with guard(strict=True):
        torch.ones(3)
