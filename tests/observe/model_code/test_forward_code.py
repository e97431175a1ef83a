from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_evalmode.observe.model_code import forward_code
from pytest_evalmode.observe.model_code.draw_calls import DRAWING_FUNCTIONS
from tests.nets import rules, watching

# Public operators that are tagged as drawing, but that no Python code calls by these names: nn.LSTM's on ROCm, and
# the functionalized variants of in-place operators.
INTERNAL = {"miopen_rnn", "normal_functional", "rrelu_with_noise_functional"}


def seeded_operators() -> set[str]:
    """Return the base names of torch's public operators that draw from a generator."""
    names = set()
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace == "aten" and not name.startswith("_"):
            operator = getattr(getattr(torch.ops.aten, name), schema.overload_name or "default")
            if torch.Tag.nondeterministic_seeded in operator.tags:
                names.add(name.strip("_"))
    return names


def test_every_operator_that_draws_is_known() -> None:
    assert seeded_operators() - INTERNAL <= DRAWING_FUNCTIONS


def test_the_exceptions_are_operators_that_draw() -> None:
    assert seeded_operators() >= INTERNAL
    assert not INTERNAL & DRAWING_FUNCTIONS


# Expressions that may draw, with the text that names the call. None of them is run.
DRAWING = {
    "F.dropout(x)": "F.dropout",
    "F.dropout(x, self.p)": "F.dropout",
    "F.dropout2d(x)": "F.dropout2d",
    "F.alpha_dropout(x, training=True)": "F.alpha_dropout",
    "F.rrelu(x, training=True)": "F.rrelu",
    "torch.dropout(x, 0.5, True)": "torch.dropout",
    "torch.nn.functional.gumbel_softmax(x)": "torch.nn.functional.gumbel_softmax",
    "F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)": "F.scaled_dot_product_attention",
    "F.scaled_dot_product_attention(x, x, x, None, 0.1)": "F.scaled_dot_product_attention",
    "torch.empty_like(x).bernoulli_(0.5)": "torch.empty_like(x).bernoulli_",
    "x + torch.randn_like(x)": "torch.randn_like",
    "torch.multinomial(x, 1)": "torch.multinomial",
    "torch.distributions.Normal(x, 1).rsample()": "torch.distributions.Normal(x, 1).rsample",
    "torch.manual_seed(0) and x": "torch.manual_seed",
    "nn.init.normal_(x)": "nn.init.normal_",
}
QUIET = (
    "x * 2 + torch.ones_like(x)",
    "torch.empty_like(x)",
    "self.dropout(x)",
    "F.scaled_dot_product_attention(x, x, x)",
    "F.scaled_dot_product_attention(x, x, x, dropout_p=0.0)",
    "F.dropout(x, training=False)",
    "x + torch.rand(2, generator=self.generator)",
    "self.random(x)",
)
GATED = (
    "F.dropout(x, 0.5, self.training)",
    "F.dropout(x, training=self.training)",
    "F.scaled_dot_product_attention(x, x, x, dropout_p=self.p if self.training else 0.0)",
    "x + torch.randn_like(x) if self.training else x",
)


@pytest.fixture
def returning(tmp_path: Path) -> Callable[[str], nn.Module]:
    """Make a module whose forward returns an expression, with its source in a file."""

    def make(expression: str) -> nn.Module:
        file = tmp_path / "net.py"
        file.write_text(f"class Net(nn.Module):\n\n    def forward(self, x):\n        return {expression}\n")
        scope: dict[str, Any] = {"nn": nn, "F": F, "torch": torch, "__name__": "net"}
        exec(compile(file.read_text(), file, "exec"), scope)
        module: nn.Module = scope["Net"]()
        return module

    return make


@pytest.mark.parametrize(("expression", "text"), DRAWING.items())
def test_a_draw_is_named_with_its_line(
    returning: Callable[[str], nn.Module], tmp_path: Path, expression: str, text: str
) -> None:
    (draw,) = forward_code.find_draw_calls(returning(expression))
    assert (draw.text, draw.gated) == (text, False)
    assert (draw.code.co_filename, draw.line) == (str(tmp_path / "net.py"), 4)
    assert forward_code.module_traits(returning(expression)).may_draw


@pytest.mark.parametrize("expression", QUIET)
def test_expressions_that_do_not_draw(returning: Callable[[str], nn.Module], expression: str) -> None:
    assert forward_code.find_draw_calls(returning(expression)) == []


@pytest.mark.parametrize("expression", GATED)
def test_a_draw_that_depends_on_the_mode_is_gated(returning: Callable[[str], nn.Module], expression: str) -> None:
    (draw,) = forward_code.find_draw_calls(returning(expression))
    assert draw.gated


def test_a_call_over_several_lines_has_the_line_of_its_name(returning: Callable[[str], nn.Module]) -> None:
    (draw,) = forward_code.find_draw_calls(
        returning("(\n            x\n            .relu()\n            .normal_(\n            )\n        )")
    )
    assert (draw.text, draw.line) == ("x.relu().normal_", 7)


NOISE = {
    "a lambda in a table": lambda x: F.dropout(x, 0.5),
    "another": lambda x: x,
}


class Activated(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)


def test_a_function_stored_on_a_module_is_read() -> None:
    def noisy(x: Tensor) -> Tensor:
        return F.dropout(x)

    activations = (noisy, NOISE["a lambda in a table"], NOISE["another"])
    assert [[draw.text for draw in forward_code.find_draw_calls(Activated(a))] for a in activations] == [
        ["F.dropout"],
        ["F.dropout"],
        [],
    ]


class Mixed(nn.Module):
    """The draw that ignores the mode comes last, in a helper."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.1, self.training)
        if self.training:
            x = x + torch.randn_like(x)
        return self.last(x)

    def last(self, x: Tensor) -> Tensor:
        return F.feature_alpha_dropout(x, 0.1, True)


def test_the_likeliest_draw_comes_first() -> None:
    draws = forward_code.find_draw_calls(Mixed())
    assert [(draw.text, draw.gated) for draw in draws] == [
        ("F.feature_alpha_dropout", False),
        ("F.dropout", True),
        ("torch.randn_like", True),
    ]


def augment(x: Tensor) -> Tensor:
    return shift(x) + torch.randn_like(x)


def shift(x: Tensor) -> Tensor:
    return x + torch.rand(1)


class Augmented(nn.Module):
    """Only training mode calls the helpers that draw."""

    def forward(self, x: Tensor) -> Tensor:
        return augment(x) if self.training else x


class AugmentedTwice(Augmented):
    """One of the helpers is called in either mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if not self.training:
            return shift(x)
        return self.again(augment(x))

    def again(self, x: Tensor) -> Tensor:
        return self.again(x) if len(x) > 9 else shift(x)


class AlwaysShifted(Augmented):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(shift(x))


@pytest.mark.parametrize(
    ("module", "gated"),
    [
        (Augmented(), {"torch.rand": True, "torch.randn_like": True}),
        (AugmentedTwice(), {"torch.rand": True, "torch.randn_like": True}),
        (AlwaysShifted(), {"torch.rand": False, "torch.randn_like": True}),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_helper_depends_on_the_mode_if_all_its_calls_do(
    module: nn.Module, gated: dict[str, bool], training: bool
) -> None:
    draws = forward_code.find_draw_calls(module.train(training))
    assert {draw.text: draw.gated for draw in draws} == gated


class NoGrad(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x


class InferenceInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return x * 2


class HoldsDropout(nn.Module):
    """Draws only in its submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()
        self.normal = 3

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(x + self.normal)
        return next(out for _ in range(2))


class UsesDropout(HoldsDropout):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.dropout(x, self.dropout.p)


class PassesFunction(HoldsDropout):
    def forward(self, x: Tensor) -> Tensor:
        return sum(x + value for value in map(torch.rand_like, [x]))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("module", "reads_training", "may_draw", "disables_grad"),
    [
        (nn.Linear(2, 2), False, False, False),
        (nn.ReLU(), False, False, False),
        (nn.Dropout(), True, True, False),
        (nn.RReLU(), True, True, False),
        (nn.MultiheadAttention(2, 1), True, True, False),
        (nn.BatchNorm1d(2), True, False, False),
        (nn.FractionalMaxPool2d(2, 1), False, True, False),
        (Mixed(), True, True, False),
        (HoldsDropout(), False, False, False),
        (UsesDropout(), False, True, False),
        (PassesFunction(), False, True, False),
        (NoGrad(), False, False, True),
        (InferenceInside(), False, False, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_traits(module: nn.Module, reads_training: bool, may_draw: bool, disables_grad: bool) -> None:
    read = forward_code.module_traits(module)
    assert (read.reads_training, read.may_draw, read.disables_grad) == (reads_training, may_draw, disables_grad)
    assert forward_code.module_traits(module) == read


class Endless(nn.Module):
    """Its methods call one another."""

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x)

    def other(self, x: Tensor) -> Tensor:
        return self.forward(x) if self.training else x


def test_recursion_ends() -> None:
    assert forward_code.module_traits(Endless()).reads_training


def test_code_without_source_is_read_by_its_names() -> None:
    namespace: dict[str, type[nn.Module]] = {}
    source = "class Typed(nn.Module):\n    def forward(self, x):\n        return F.dropout(x, training=self.training)\n"
    exec(source, {"nn": nn, "F": F, "__name__": "typed"}, namespace)
    module = namespace["Typed"]()
    with pytest.raises(OSError, match=r"source|lineno"):
        inspect.getsource(type(module).forward)
    assert forward_code.module_traits(module).reads_training
    assert forward_code.module_traits(module).may_draw
    assert forward_code.find_draw_calls(module) == []


def test_reading_code_runs_nothing() -> None:
    class Trap(nn.Module):
        @property
        def noise(self) -> Tensor:
            raise AssertionError

        def __getattr__(self, name: str) -> NoReturn:
            raise AssertionError(name)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.noise

    trap = Trap()
    assert not forward_code.module_traits(trap).may_draw
    assert forward_code.find_draw_calls(trap) == []


class Scales(nn.Module):
    """Depends on the mode and disables autograd."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x) if self.training else x


class Inherits(Scales):
    """Inherits its forward, until it is patched."""


def patched_with_autospec(module: nn.Module) -> None:
    mock.patch.object(module, "forward", autospec=True, side_effect=module.forward).start()


def wrapped_by_a_mock(module: nn.Module) -> None:
    module.forward = mock.MagicMock(wraps=module.forward)


def made_partial(module: nn.Module) -> None:
    module.forward = functools.partial(Scales.forward, module)  # type: ignore[arg-type]


def hooked(module: nn.Module) -> None:
    """As accelerate installs its hooks."""
    module.forward = functools.update_wrapper(functools.partial(lambda self, x: x, module), module.forward)


def wrapped_by_a_closure(module: nn.Module) -> None:
    method = module.forward
    module.forward = lambda x: method(x)


@pytest.mark.parametrize("wrap", [patched_with_autospec, wrapped_by_a_mock, made_partial, hooked, wrapped_by_a_closure])
def test_a_wrapped_forward_has_the_same_traits(wrap: Callable[[nn.Module], None]) -> None:
    module = Scales()
    plain = forward_code.module_traits(module)
    wrap(module)
    assert forward_code.module_traits(module) == plain
    assert [draw.text for draw in forward_code.find_draw_calls(module)] == ["F.dropout"]


def test_a_type_with_a_mocked_forward_has_the_same_traits() -> None:
    plain = forward_code.module_traits(Scales())
    with mock.patch.object(Scales, "forward", autospec=True, side_effect=Scales.forward):
        assert forward_code.module_traits(Scales()) == plain


def test_a_replaced_forward_is_read_again() -> None:
    for kind in (Scales, Inherits):
        assert forward_code.module_traits(kind()).reads_training
        with mock.patch.object(Scales, "forward", lambda self, x: x):
            assert not forward_code.module_traits(kind()).reads_training
        assert forward_code.module_traits(kind()).reads_training


def test_a_replaced_call_is_read_again() -> None:
    class Called(nn.Module):
        def __call__(self, x: Tensor) -> Tensor:
            return F.dropout(x, training=self.training)

    assert forward_code.module_traits(Called()).reads_training
    with mock.patch.object(Called, "__call__", lambda self, x: x):
        assert not forward_code.module_traits(Called()).reads_training
    assert forward_code.module_traits(Called()).reads_training


@torch.no_grad()
def test_the_traits_of_a_patched_forward_do_not_outlive_the_patch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Inherits()).eval()
    for apply, expected in ((F.dropout, {"random-forward"}), (F.relu, set())):
        with mock.patch.object(Inherits, "forward", lambda self, x, apply=apply: apply(x)), watching() as g:
            model(torch.ones(2, 4))
        assert rules(g) == expected
    model[1].train()
    for replaced, expected in ((lambda self, x: x, set()), (Scales.forward, {"train-mode"})):
        with mock.patch.object(Inherits, "forward", replaced), watching() as g:
            model(torch.ones(2, 4))
        assert rules(g) == expected


DYING = """
import gc, weakref
from torch import nn
from torch.nn import functional as F
from pytest_evalmode.observe.model_code import forward_code

class Base(nn.Module):
    def forward(self, x):
        return F.dropout(x, training=self.training)

class Local(Base):
    def forward(self, x):
        return super().forward(x)

assert forward_code.module_traits(Local()).reads_training
known = weakref.ref(Local)
del Local
gc.collect()
assert known() is None, gc.get_referrers(known())
"""


@pytest.mark.slow
def test_cached_traits_do_not_keep_a_type_alive(tmp_path: Path) -> None:
    """In its own process, because objects left by other tests may refer to a type that is defined after them."""
    script = tmp_path / "dying.py"
    script.write_text(DYING, encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True)
