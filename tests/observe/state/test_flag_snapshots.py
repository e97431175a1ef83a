"""Leaks of model flags and of torch's global flags."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from pytest_evalmode import Guard, guard
from pytest_evalmode.observe.models.shared_models import SharedModels
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.state.flag_snapshots import find_leaks, read_global_flags, read_model_flags
from tests.nets import Net, batch, rules, watching

DTYPES = (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda"))

# For each global flag, a setter and two values.
Setter = Callable[[Any], object]
GLOBALS: dict[str, tuple[Setter, Any, Any]] = {
    "grad_mode": (torch.set_grad_enabled, True, False),
    "default_dtype": (torch.set_default_dtype, torch.float32, torch.float64),
    "default_device": (torch.set_default_device, None, "meta"),
    "deterministic_algorithms": (torch.use_deterministic_algorithms, False, True),
    "float32_matmul_precision": (torch.set_float32_matmul_precision, "highest", "high"),
    "cudnn.enabled": (lambda on: setattr(torch.backends.cudnn, "enabled", on), True, False),
    "cudnn.benchmark": (lambda on: setattr(torch.backends.cudnn, "benchmark", on), False, True),
    "cudnn.deterministic": (lambda on: setattr(torch.backends.cudnn, "deterministic", on), False, True),
    "cudnn.allow_tf32": (lambda on: setattr(torch.backends.cudnn, "allow_tf32", on), True, False),
    "cuda.matmul.allow_tf32": (lambda on: setattr(torch.backends.cuda.matmul, "allow_tf32", on), False, True),
    "autocast.cpu": (lambda on: torch.set_autocast_enabled("cpu", on), False, True),
    "autocast.cpu_dtype": (lambda dtype: torch.set_autocast_dtype("cpu", dtype), DTYPES[0], torch.float16),
    "autocast.cuda_dtype": (lambda dtype: torch.set_autocast_dtype("cuda", dtype), DTYPES[1], torch.bfloat16),
    "threads": (torch.set_num_threads, 1, 2),
    "anomaly_mode": (torch.autograd.set_detect_anomaly, False, True),
}


@pytest.fixture(autouse=True)
def _restore_flags() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False, warn_only=False)
    for set_, usual, _ in GLOBALS.values():
        set_(usual)


@pytest.mark.parametrize("name", GLOBALS)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_global_flag_is_a_leak(name: str) -> None:
    set_, usual, other = GLOBALS[name]
    set_(usual)
    before = read_global_flags()
    set_(other)
    assert name in {leak.name for leak in find_leaks(None, before, read_global_flags())}
    set_(usual)
    assert list(find_leaks(None, before, read_global_flags())) == []


def test_a_leak_has_the_old_and_the_new_value() -> None:
    before = read_global_flags()
    torch.set_default_dtype(torch.float64)
    (leak,) = find_leaks(None, before, read_global_flags())
    assert (leak.model, leak.name, leak.before, leak.after) == (None, "default_dtype", "float32", "float64")


def test_warn_only_is_a_flag_of_its_own() -> None:
    torch.use_deterministic_algorithms(True)
    before = read_global_flags()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert [leak.name for leak in find_leaks(None, before, read_global_flags())] == [
        "deterministic_algorithms_warn_only"
    ]


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "cudnn": lambda: torch.backends.cudnn.flags(enabled=False),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_context_manager_of_torch_leaves_no_leak(context: Callable[[], Any]) -> None:
    before = read_global_flags()
    with context():
        assert read_global_flags() != before
    assert read_global_flags() == before


@pytest.mark.parametrize("act", [lambda: torch.manual_seed(0), lambda: torch.rand(1)], ids=["seed", "draw"])
def test_random_numbers_are_not_a_flag(act: Callable[[], object]) -> None:
    before = read_global_flags()
    act()
    assert read_global_flags() == before


# --- models


def grad_in_place(net: Net) -> None:
    assert net.head.weight.grad is not None
    net.head.weight.grad.add_(1)


LEAKS: dict[str, tuple[Callable[[Net], object], str, str]] = {
    "training": (lambda net: net.drop.train(), "drop.training", "True"),
    "the whole": (lambda net: net.train(), "training", "True"),
    "requires_grad": (lambda net: net.head.bias.requires_grad_(False), "head.bias.requires_grad", "False"),
    "a gradient": (lambda net: setattr(net.head.bias, "grad", torch.ones(2)), "head.bias.grad", "tensor of shape (2,)"),
    "a removed gradient": (lambda net: net.zero_grad(), "head.weight.grad", "None"),
    "a gradient that grew": (grad_in_place, "head.weight.grad", "tensor of shape (2, 4)"),
    "forward hook": (lambda net: net.head.register_forward_hook(print), "head.forward_hooks", "print"),
    "pre-hook": (lambda net: net.register_forward_pre_hook(print), "forward_pre_hooks", "print"),
    "backward hook": (lambda net: net.register_full_backward_hook(print), "backward_hooks", "print"),
    "backward pre-hook": (lambda net: net.register_full_backward_pre_hook(print), "backward_pre_hooks", "print"),
    "state dict hook": (lambda net: net.register_state_dict_post_hook(lambda *_: None), "state_dict_hooks", "lambda"),  # type: ignore[no-untyped-call]
    "load hook": (
        lambda net: net.register_load_state_dict_post_hook(print),  # type: ignore[no-untyped-call]
        "load_state_dict_post_hooks",
        "print",
    ),
    "a removed hook": (lambda net: net.bn._forward_hooks.clear(), "bn.forward_hooks", "none"),
}
NOT_LEAKS: dict[str, Callable[[Net], object]] = {
    "mode": lambda net: net.train().eval(),
    "requires_grad": lambda net: net.requires_grad_(False).requires_grad_(True),
    "gradient": lambda net: (setattr(net.body.bias, "grad", torch.ones(4)), setattr(net.body.bias, "grad", None)),  # type: ignore[func-returns-value]
    "hook": lambda net: net.register_forward_hook(print).remove(),
    "an added layer": lambda net: net.add_module("more", nn.Linear(1, 1)),
    "a removed layer": lambda net: delattr(net, "body"),
}


def shared() -> Net:
    """Return a model with a gradient and a hook."""
    net = Net().eval()
    net.head.weight.grad = torch.zeros(2, 4)
    net.bn.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(("act", "name", "after"), LEAKS.values(), ids=LEAKS)
def test_a_changed_flag_of_a_model_is_a_leak(act: Callable[[Net], object], name: str, after: str) -> None:
    net = shared()
    before = read_model_flags(net)
    act(net)
    leaked = {leak.name: leak for leak in find_leaks("net", before, read_model_flags(net))}
    assert name in leaked
    assert after in str(leaked[name].after)
    assert leaked[name].before != leaked[name].after
    assert leaked[name].model == "net"


@pytest.mark.parametrize("act", NOT_LEAKS.values(), ids=NOT_LEAKS)
def test_these_acts_on_a_model_are_not_a_leak(act: Callable[[Net], object]) -> None:
    net = shared()
    before = read_model_flags(net)
    act(net)
    assert list(find_leaks("net", before, read_model_flags(net))) == []


def test_a_hook_replaced_by_one_with_the_same_name_is_a_leak() -> None:
    net = Net()
    handle = net.register_forward_hook(print)
    before = read_model_flags(net)
    handle.remove()
    net.register_forward_hook(print)
    assert [leak.name for leak in find_leaks("net", before, read_model_flags(net))] == ["forward_hooks"]


def test_a_dead_model_leaks_nothing() -> None:
    net, models = shared(), SharedModels(Watch(lambda code, line: None, strict=True))
    models.add(net, None)
    net.train()
    assert models.find_leaks()
    net.eval()
    del net
    gc.collect()
    assert models.find_leaks() == ()


def test_flags_set_in_a_pause_are_the_new_baseline() -> None:
    net = shared()
    with watching(net, strict=True) as g, torch.no_grad():
        with g.paused():
            net.requires_grad_(False)
        net(batch())
    assert rules(g) == set()


def leaks(g: Guard) -> list[tuple[str, ...]]:
    """Return the flags that leaked."""
    return [violation.subjects for violation in g.violations if violation.rule.endswith("-leaked")]


# The mode that is set before, in and after a pause on a model in eval mode, and whether that is a leak.
PAUSES: dict[str, tuple[str, bool]] = {
    "train before": ("train | |", True),
    "train after": ("| | train", True),
    "train in it": ("| train |", False),
    "train in it, eval after": ("| train | eval", False),
    "train before, eval in it": ("train | eval |", False),
    "train before, eval after": ("train | | eval", False),
    "train before, eval in it, train after": ("train | eval | train", True),
}


@pytest.mark.parametrize(("steps", "leak"), PAUSES.values(), ids=PAUSES)
def test_a_pause_hides_only_flags_that_are_set_in_it(steps: str, leak: bool) -> None:
    before, inside, after = (part.strip() for part in steps.split("|"))
    net = nn.Dropout().eval()

    def act(mode: str) -> None:
        if mode:
            net.train(mode == "train")
            torch.set_num_threads(2 if mode == "train" else 1)

    with watching(net, strict=True) as g:
        act(before)
        with g.paused():
            act(inside)
        act(after)
        assert leaks(g) == []  # it may still be restored
    assert leaks(g) == ([("Dropout.training",), ("torch threads",)] if leak else [])


@pytest.mark.parametrize("rule", ["model-leaked", "global-leaked"])
def test_a_leak_may_be_allowed_for_part_of_a_test(rule: str) -> None:
    net = nn.Dropout().eval()
    with watching(net, strict=True) as g, g.allow(rule):
        net.train()
        torch.set_num_threads(2)
    others = {"model-leaked": ("torch threads",), "global-leaked": ("Dropout.training",)}
    assert leaks(g) == [others[rule]]
    assert "unused-exemption" not in rules(g)


def test_a_submodule_that_is_watched_itself_is_reported_once() -> None:
    part = nn.Linear(2, 2).eval()
    whole = nn.Sequential(part).eval()
    with watching(part, whole, strict=True) as g:
        whole.train()
    assert leaks(g) == [("Sequential.0.training", "Sequential.training")]


# --- hooks that the model adds or removes itself


class OwnLazy(nn.Module):
    """Removes one of its two hooks in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Any = UninitializedParameter()
        self.stays = self.register_forward_hook(lambda *_: None)
        self.handle = self.register_forward_pre_hook(self.begin)

    def begin(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.weight.materialize((2, args[0].shape[-1]))
        with torch.no_grad():
            self.weight.zero_()
        self.handle.remove()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


class Hooking(Net):
    """Adds a hook to one of its layers in each forward."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        super().__init__()
        self.hook = hook

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        next(self.children()).register_forward_hook(self.hook)
        return out


def users_hook(*_: Any) -> None: ...


OWN_HOOKS: dict[str, Callable[[], nn.Module]] = {
    "lazy": lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()),
    "a lazy class of the user": lambda: nn.Sequential(OwnLazy()),
    "of a library": lambda: Hooking(logging.debug),
    "of a library, with functools.partial": lambda: Hooking(functools.partial(logging.debug, "%s")),
}


@pytest.mark.parametrize("make", OWN_HOOKS.values(), ids=OWN_HOOKS)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_hooks_that_a_model_adds_or_removes_itself_are_not_leaks(make: Callable[[], nn.Module], wrapped: bool) -> None:
    model = make().eval()
    ran = nn.Sequential(model) if wrapped else model
    with watching(model, strict=True) as g, torch.no_grad():
        ran(batch())
    assert "model-leaked" not in rules(g)


FOREIGN_HOOKS: dict[str, Callable[[Any], object]] = {
    "removed by the test": lambda lazy: lazy.handle.remove(),
    "another one, removed": lambda lazy: lazy.stays.remove(),
    "another one, removed after a forward": lambda lazy: (lazy(batch()), lazy.stays.remove()),
    "added before a forward": lambda lazy: (lazy.register_forward_hook(users_hook), lazy(batch())),
    "added after a forward": lambda lazy: (lazy(batch()), lazy.register_forward_hook(users_hook)),
    "of a library, added by the test": lambda lazy: lazy.register_forward_hook(logging.debug),
}


@pytest.mark.parametrize("act", FOREIGN_HOOKS.values(), ids=FOREIGN_HOOKS)
def test_hooks_that_the_test_adds_or_removes_are_leaks(act: Callable[[Any], object]) -> None:
    model = OwnLazy().eval()
    with watching(model, strict=True) as g, torch.no_grad():
        act(model)
    assert "model-leaked" in rules(g)


def test_a_users_hook_that_a_forward_adds_is_a_leak() -> None:
    model = Hooking(users_hook).eval()
    with watching(model, strict=True) as g, torch.no_grad():
        model(batch())
    assert rules(g) == {"model-leaked"}


def test_the_default_device_is_read_although_a_test_patched_torch_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with guard(strict=True), monkeypatch.context() as patched:
        patched.setattr(torch, "device", lambda *_: pytest.fail("called"))
        with torch.no_grad():
            Net().eval()(batch())
        assert read_global_flags()["default_device"] == "cpu"
