"""`guard(strict=True)`: each fault, and code that looks similar but is fine."""

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

SEPARATE_TORCH = torch.Generator().manual_seed(0)
SEPARATE_PYTHON = random.Random(0)
SEPARATE_NUMPY = np.random.default_rng(0)


class Doing(nn.Module):
    """A model that applies a function to its output."""

    def __init__(self, do: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.do = do
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> object:
        return self.do(self.head(x))


# --- grad-mode


def frozen() -> nn.Module:
    return Net().eval().requires_grad_(False)


def test_a_frozen_model_in_grad_mode_breaks_strict_grad_mode() -> None:
    with watching(strict=True) as g:
        frozen()(batch())
    violation = only(g, "grad-mode")
    assert violation.finding == "Net ran with grad mode on: nothing requires grad"
    with guard():
        frozen()(batch())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_frozen_model_without_grad_mode_is_clean(off: Callable[[], Any]) -> None:
    with guard(strict=True), off():
        frozen()(batch())


def test_grad_mode_does_not_matter_for_modules_without_parameters() -> None:
    with guard(strict=True), torch.no_grad():
        logits = Net().eval()(batch())
        with torch.enable_grad():
            nn.CrossEntropyLoss()(logits, torch.zeros(8, dtype=torch.long))
            Transform(torch.relu)(logits)


def test_a_forward_that_turns_grad_mode_off_itself_is_clean() -> None:
    class Careful(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with guard(strict=True):
        Careful().eval().requires_grad_(False)(batch())


def test_a_frozen_forward_that_turns_grad_mode_off_for_a_part_breaks_grad_mode() -> None:
    class Masking(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                mask = x != 0
            return super().forward(x * mask)

    with watching(strict=True) as g:
        Masking().eval().requires_grad_(False)(batch())
    assert only(g, "grad-mode").finding == "Masking ran with grad mode on: nothing requires grad"


# --- random-forward

DRAWS: dict[str, Callable[[Tensor], object]] = {
    "Python's": lambda h: h * random.random(),
    "Python's shuffle": lambda h: random.shuffle([1, 2, 3]),
    "NumPy's": lambda h: h * float(np.random.rand()),
    "NumPy's permutation": lambda h: h[np.random.permutation(len(h))],
    "torch's": lambda h: h + torch.randn_like(h),
}
NOT_GLOBAL: dict[str, Callable[[Tensor], object]] = {
    "separate Python generator": lambda h: h * SEPARATE_PYTHON.random(),
    "separate NumPy generator": lambda h: h * float(SEPARATE_NUMPY.random()),
    "separate torch generator": lambda h: h + torch.rand(h.shape, generator=SEPARATE_TORCH),
    "reading the state": lambda h: (random.getstate(), np.random.get_state(), torch.get_rng_state(), h)[-1],
}


@parametrize_cases(DRAWS)
@pytest.mark.parametrize("kind", [Doing, Transform], ids=["model", "augmentation"])
def test_draws_from_global_generators_break_random_forward(
    case: Callable[[Tensor], object], kind: type[Doing | Transform]
) -> None:
    assert broken_rules(kind(case)) == {"random-forward"}


@parametrize_cases(NOT_GLOBAL)
@pytest.mark.parametrize("kind", [Doing, Transform], ids=["model", "augmentation"])
def test_draws_from_other_generators_are_clean(case: Callable[[Tensor], object], kind: type[Doing | Transform]) -> None:
    assert broken_rules(kind(case)) == set()


def test_the_default_rules_cover_only_draws_of_models_from_torch() -> None:
    with guard(), torch.no_grad():
        Doing(DRAWS["Python's"]).eval()(batch())
        Transform(DRAWS["torch's"])(batch())


def test_draws_between_forwards_are_clean() -> None:
    model = Net().eval()
    with guard(strict=True), torch.no_grad():
        for _ in range(2):
            model(batch() * random.random() * float(np.random.rand()))


@pytest.mark.parametrize("whose", ["Python's", "NumPy's"])
def test_the_library_of_the_generator_is_named(whose: str) -> None:
    with watching(strict=True) as g, torch.no_grad():
        Doing(DRAWS[whose]).eval()(batch())
    finding = only(g, "random-forward").finding
    assert whose.removesuffix("'s") in finding
    assert "torch's" not in finding


# --- attribute-mutated, partial-load and leaks, through a guard


class Sticky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.attention_type = "block_sparse"

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 4:
            self.attention_type = "original_full"
        h: Tensor = self.head(x)
        return h if self.attention_type == "block_sparse" else h + 1


def test_an_attribute_that_a_forward_sets_is_reported_once() -> None:
    model = nn.ModuleDict({"encoder": Sticky()}).eval()
    with watching(strict=True) as g, torch.no_grad():
        g.watch(model, "model")
        model["encoder"](batch(8, 4))
        model["encoder"](batch(2, 4))
        model["encoder"](batch(2, 4))
    violation = only(g, "attribute-mutated")
    assert violation.message == "model.encoder.attention_type: 'block_sparse' -> 'original_full'"
    assert violation.count == 1


def test_an_attribute_that_the_test_sets_between_forwards_is_clean() -> None:
    model = Sticky().eval()
    with guard(strict=True), torch.no_grad():
        for kind in ("a", "b"):
            model.attention_type = kind
            model(batch())


def test_a_partial_load_is_reported_even_if_the_keys_are_inspected_unless_it_is_allowed() -> None:
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


def test_a_shared_model_left_in_training_mode_is_a_leak() -> None:
    model = Net().eval()
    with watching(model, strict=True) as g:
        model.drop.train()
    violation = only(g, "model-leaked")
    assert violation.subjects == ("Net.drop.training",)
    assert "left in training mode" in violation.message


def test_a_model_that_the_window_creates_may_be_left_in_any_state() -> None:
    with guard(strict=True), torch.no_grad():
        model = Net().eval()
        model(batch())
        model.train().requires_grad_(False)


def test_a_change_that_is_restored_is_not_a_leak() -> None:
    model = Net().eval()
    with guard(model, strict=True), torch.no_grad():
        handle = model.register_forward_hook(lambda *_: None)
        model.requires_grad_(False).train()
        handle.remove()
        model.requires_grad_(True).eval()
        model(batch())


def test_a_changed_global_flag_is_a_leak() -> None:
    before = torch.get_default_dtype()
    try:
        with watching(strict=True) as g:
            torch.set_default_dtype(torch.float64)
        assert only(g, "global-leaked").message == "torch default_dtype changed from float32 to float64"
    finally:
        torch.set_default_dtype(before)


# --- exemptions for a part of the window, and unused ones


def test_a_rule_can_be_allowed_for_part_of_a_window() -> None:
    model = Sticky().eval()
    with guard(strict=True) as g, torch.no_grad():
        model(batch())
        with g.allow("attribute-mutated", reason="falls back on short input"):
            model(batch(2, 4))
        model(batch())


def test_allowing_a_rule_for_a_part_does_not_allow_it_for_the_rest() -> None:
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
def test_an_exemption_that_matched_nothing_is_unused(case: tuple[dict[str, Any], str]) -> None:
    arguments, subject = case
    with watching(strict=True, **arguments) as g, torch.no_grad():
        Net().eval()(batch())
    assert only(g, "unused-exemption").subjects == (subject,)
    with guard(**arguments), torch.no_grad():
        Net().eval()(batch())


@parametrize_cases(UNUSED)
def test_an_exemption_that_matched_nothing_in_its_part_is_unused(case: tuple[dict[str, Any], str]) -> None:
    arguments = dict(case[0])
    allow = [arguments.pop("allow")] if "allow" in arguments else []
    with watching(strict=True) as g, torch.no_grad():
        with g.allow(*allow, **arguments):
            Net().eval()(batch())
        Transform(torch.relu)(batch())
    assert only(g, "unused-exemption").subjects == (case[1],)


def test_an_exemption_that_may_still_match_is_not_reported() -> None:
    with guard(strict=True, train="drop") as g, torch.no_grad():
        model = Net().eval()
        model(batch())
        g.check()
        model.drop.train()(batch())


def test_a_block_that_failed_has_no_unused_exemptions() -> None:
    def block() -> None:
        with guard(strict=True, train="drop"):
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        block()
    assert not hasattr(caught.value, "__notes__")


def test_no_forward_applies_only_to_marked_tests() -> None:
    with guard(strict=True):
        torch.ones(3)
