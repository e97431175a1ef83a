"""The guard keeps no model alive inside a window, and nothing at all after it."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import guard, inference
from pytest_evalmode.observe.state import fingerprint, snapshot
from tests.nets import Net, batch, only, rules, watching
from tests.suites import PLAIN, write

both = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn the garbage collector off: objects are freed only when their last reference is dropped."""
    gc.freeze()  # a collection inside a test passes over the objects of other tests
    gc.disable()
    yield
    gc.enable()


# --- a model dies


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def shared_part() -> nn.Module:
    """Return a model with a layer that is registered twice, and also in a plain list."""
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    vars(model)["layers"] = [layer]
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


def buffered() -> nn.Module:
    """Return a model with each kind of tensor that the strict rules check."""
    model = Net()
    model.register_buffer("non_persistent", torch.ones(3), persistent=False)
    vars(model)["plain"] = torch.ones(3)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a net": Net,
    "tied weights": tied,
    "a submodule registered twice": shared_part,
    "a hook": hooked,
    "buffers and attributes": buffered,
    "a large layer": lambda: nn.Linear(4, 1 << 16),
}


@both
@pytest.mark.parametrize("given", [True, False], ids=["given", "seen"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.usefixtures("no_collector")
def test_a_model_dies_when_it_is_dropped(make: Callable[[], nn.Module], given: bool, strict: bool) -> None:
    model = make().eval()
    refs = [
        weakref.ref(model),
        *map(weakref.ref, model.modules()),
        *map(weakref.ref, model.state_dict(keep_vars=True).values()),
    ]
    with guard(*[model][:given], strict=strict):
        model(batch())
        del model
        assert [ref() for ref in refs if ref() is not None] == []


@both
@pytest.mark.usefixtures("no_collector")
def test_a_changed_model_dies_and_is_reported(strict: bool) -> None:
    with watching(strict=strict) as g:
        model = Net().eval()
        model(batch())
        gone = weakref.ref(model)
        model.head.bias.add_(1)
        del model
        assert gone() is None
    assert only(g, "state-mutated").subjects == ("Net.head.bias",)


@both
def test_a_model_with_a_back_reference_lives_until_the_window_closes(strict: bool) -> None:
    """The guard keeps its submodules until then, to compare them, and they refer to the model."""

    class Hooked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body.register_forward_hook(self.see)

        def see(self, *_: object) -> None:
            pass

    with guard(strict=strict):
        model = Hooked().eval()
        model(batch())
        gone = weakref.ref(model)
        del model
    gc.collect()
    assert gone() is None


@both
def test_a_model_that_raised_dies_with_its_exception(strict: bool) -> None:
    with guard(strict=strict):
        model = Net().eval()
        gone = weakref.ref(model)
        with pytest.raises(RuntimeError):
            model(batch(2, 3))
        del model
        gc.collect()
        assert gone() is None


@pytest.mark.usefixtures("no_collector")
def test_inference_keeps_no_model_alive() -> None:
    model = Net()
    gone = weakref.ref(model)
    with inference(model) as g:
        model(batch())
    del model
    assert gone() is None
    assert g.violations == []


# --- swap_tensors, which refuses tensors that have weak references

swap_tensors: Callable[[Tensor, Tensor], None] = torch.utils.swap_tensors


@both
def test_swap_tensors_with_equal_values_is_clean(strict: bool) -> None:
    model = Net().eval()
    with guard(model, strict=strict) as g:
        model(batch())
        swap_tensors(model.head.weight, nn.Parameter(model.head.weight.clone()))
        model(batch())
        assert g.violations == []
        swap_tensors(model.head.weight, nn.Parameter(model.head.weight.clone()))
    swap_tensors(model.head.weight, nn.Parameter(model.head.weight + 1))


@both
def test_swap_tensors_with_other_values_is_reported(strict: bool) -> None:
    model = Net().eval()
    with watching(model, strict=strict) as g:
        model(batch())
        swap_tensors(model.head.weight, nn.Parameter(model.head.weight + 1))
    assert only(g, "state-mutated").subjects == ("Net.head.weight",)


@both
def test_a_conversion_that_swaps_tensors_works(strict: bool) -> None:
    model = Net().eval()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with guard(model, strict=strict):
            model(batch())
            model.double()
            model.float()
            model(batch())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


# --- many windows


def census() -> Counter[str]:
    """Count the live objects of the plugin, the modules and the tensors."""
    gc.collect()
    kinds = map(type, gc.get_objects())
    ours = (
        kind
        for kind in kinds
        if str(kind.__module__).startswith("pytest_evalmode") or issubclass(kind, nn.Module | Tensor)
    )
    return Counter(kind.__name__ for kind in ours)


def guarded_windows(count: int, strict: bool) -> None:
    lasting = Net().eval()
    for _ in range(count):
        with guard(lasting, strict=strict):
            lasting(batch())
            Net().eval()(batch())


@both
def test_many_windows_leave_nothing(strict: bool) -> None:
    guarded_windows(20, strict)
    gc.collect()
    gc.freeze()  # the objects of other tests are not counted
    before, blocks = census(), [sys.getallocatedblocks()]
    for _ in range(3):
        guarded_windows(30, strict)
        after = census()
        blocks.append(sys.getallocatedblocks())
    assert not after - before
    # A leak grows each time; a cache that is filled once does not.
    assert min(later - earlier for earlier, later in pairwise(blocks)) < 30


SUITE = """
import weakref

@pytest.fixture(scope="session")
def lasting():
    return Net().eval()

@pytest.mark.parametrize("number", range(50))
@pytest.mark.inference
def test_it(lasting, number):
    infer(lasting)
    own = Net().eval()
    infer(own)
    gone = weakref.ref(own)
    del own
    assert gone() is None
"""


class Census:
    """A plugin that counts the live objects after some tests of a suite."""

    def __init__(self, *after: int) -> None:
        self.ran = 0
        self.after = after
        self.counts: list[Counter[str]] = []

    def pytest_runtest_logfinish(self) -> None:
        self.ran += 1
        if self.ran in self.after:
            counts = census()
            del counts["Policy"]  # pytester keeps the arguments of all hook calls
            self.counts.append(counts)


@both
def test_many_guarded_tests_leave_nothing(pytester: pytest.Pytester, strict: bool) -> None:
    write(pytester, SUITE)
    counter = Census(15, 45)
    options = ["--evalmode-strict"] if strict else []
    passed, skipped, failed = pytester.inline_run(*PLAIN, *options, plugins=[counter]).listoutcomes()
    assert (len(passed), len(skipped), len(failed)) == (50, 0, 0)
    early, late = counter.counts
    assert not late - early


# --- the garbage collector runs while the guard reads


class Around(nn.Module):
    """A model in a reference cycle: it dies when the garbage collector runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        vars(self)["me"] = self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


@pytest.fixture
def collected_inside(no_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the garbage collector at each tensor that is read."""

    def collect(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        return fingerprint_of(*args, **kwargs)

    fingerprint_of = fingerprint.fingerprint_of
    monkeypatch.setattr(snapshot, "fingerprint_of", collect)


@pytest.mark.usefixtures("collected_inside")
@pytest.mark.parametrize("changed", [True, False])
def test_a_model_that_dies_while_another_is_read_is_compared(changed: bool) -> None:
    other = nn.Linear(4, 4).eval()
    with watching() as g:
        model = Around(nn.Linear(4, 4)).eval()
        model(torch.ones(1, 4))
        gone = weakref.ref(model)
        if changed:
            model.inner.bias.add_(1)  # type: ignore[operator]
        del model
        other(torch.ones(1, 4))
        assert gone() is None
    assert rules(g) == ({"state-mutated"} if changed else set())


@pytest.mark.usefixtures("collected_inside")
def test_a_survivor_of_a_model_that_dies_while_another_is_read_is_watched() -> None:
    inner, other = nn.Linear(4, 4).eval(), nn.Linear(4, 4).eval()
    with watching() as g:
        Around(inner).eval()(torch.ones(1, 4))
        other(torch.ones(1, 4))
        inner.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Linear#2.bias",)


@pytest.mark.usefixtures("collected_inside")
def test_a_model_that_dies_at_the_end_of_the_window_is_compared() -> None:
    other = nn.Linear(4, 4).eval()
    with watching(other) as g:
        model = Around(nn.Linear(4, 4)).eval()
        model(torch.ones(1, 4))
        model.inner.bias.add_(1)  # type: ignore[operator]
        other.bias.add_(1)
        del model
    assert [violation.model for violation in g.violations] == ["Linear", "Around"]
