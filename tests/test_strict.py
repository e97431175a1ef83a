"""`guard(strict=True)`: each fault beside what looks like it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import HygieneError, guard
from tests.nets import Net, batch, only, watching
from tests.strict import Transform, broken_rules, parametrize_cases

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


# --- grad-mode


def frozen() -> nn.Module:
    return Net().eval().requires_grad_(False)


def test_a_frozen_model_in_grad_mode() -> None:
    with watching(strict=True) as g:
        frozen()(batch())
    violation = only(g, "grad-mode")
    assert violation.finding == "Net recorded autograd: grad mode was on"
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
    assert only(g, "grad-mode").finding == "Masking recorded autograd: grad mode was on"


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


@parametrize_cases(DRAWS)
@pytest.mark.parametrize("kind", [Doing, Transform], ids=["model", "augmentation"])
def test_draws(case: Callable[[Tensor], object], kind: type[Doing | Transform]) -> None:
    assert broken_rules(kind(case)) == {"random-forward"}


@parametrize_cases(QUIET)
@pytest.mark.parametrize("kind", [Doing, Transform], ids=["model", "augmentation"])
def test_own_generators(case: Callable[[Tensor], object], kind: type[Doing | Transform]) -> None:
    assert broken_rules(kind(case)) == set()


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
    assert "left in training mode" in violation.message


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


@parametrize_cases(UNUSED)
def test_nothing_needed_it(case: tuple[dict[str, Any], str]) -> None:
    arguments, subject = case
    with watching(strict=True, **arguments) as g, torch.no_grad():
        Net().eval()(batch())
    assert only(g, "unused-exemption").subjects == (subject,)
    with guard(**arguments), torch.no_grad():
        Net().eval()(batch())


@parametrize_cases(UNUSED)
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
