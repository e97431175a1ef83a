"""Attributes that forwards store: whether a later forward can read what an earlier one has stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode.observe.model_code.attribute_accesses import attribute_use


class Base(nn.Module):
    kept: Any
    other: Any

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class WritesFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.mean()
        y: Tensor = x - self.kept
        return y


class WritesOnly(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        self.kept, self.other = y, x.shape
        return y


class InMethods(Base):
    """As a reversible normalization: one method stores, two others read."""

    def forward(self, x: Tensor, mode: str) -> Tensor:
        if mode == "norm":
            self._store(x)
            return self._normalize(x)
        y: Tensor = x + self.kept
        return y

    def _store(self, x: Tensor) -> None:
        self.kept = x.mean()

    def _normalize(self, x: Tensor) -> Tensor:
        y: Tensor = x - self.kept
        return y


class Resets(Base):
    def forward(self, x: Tensor) -> Any:
        self.kept = []
        for _ in range(3):
            self.kept.append(x)
        return self.kept


class ByKey(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.kept["map"] = y
        return y


class Inherits(WritesFirst):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class InClosure(Base):
    def forward(self, x: Tensor) -> Any:
        self.kept = x
        return [(lambda y: y + self.kept)(x) for _ in range(2)]


class Block(Base):
    """Its container stores the size of the image before it runs, as in a hierarchical transformer."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == self.kept
        return x


class Container(Base):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            part: Any = block
            part.kept = len(x)
            x = part(x)
        return x


class Hooked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        return x


def keep(module: Any, args: Any, output: Tensor) -> None:
    module.kept = output


class WritesSometimes(Base):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            self.kept = x.mean()
        y: Tensor = x - self.kept
        return y


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.kept += 1
        return x


class Carries(Base):
    def forward(self, x: Tensor) -> Any:
        y, self.kept = self.layer(x), (x, self.kept)
        return y


class CachesByShape(Base):
    def forward(self, x: Tensor) -> Any:
        if self.kept != x.shape:
            self.kept = x.shape
        return x


class Appends(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return x


class ReadsLater(Base):
    """Reads elements that an earlier forward has written, beside the one that it writes."""

    def forward(self, x: Tensor) -> Any:
        self.kept[len(x)] = x
        return sum(self.kept)


class CountsElements(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.kept["n"] += 1
        return x


class CountsInMethod(Base):
    def forward(self, x: Tensor) -> Tensor:
        for _ in x:
            self._count()
        return x

    def _count(self) -> None:
        self.kept = self.kept + 1


class CountsInProperty(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * self._next

    @property
    def _next(self) -> int:
        self.kept = 2 * self.kept
        return int(self.kept)


class CountsByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        setattr(self, "kept", getattr(self, "kept", 0) + 1)  # noqa: B010
        return x


class PassesItself(Base):
    def forward(self, x: Tensor) -> Tensor:
        count(self)
        return x


def count(module: Any) -> None:
    module.kept += 1


class CountsInHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(lambda module, _: count(module))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Overwrites(Base):
    """Replaces what another module of the model counts."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ReadsOnALoop(Base):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.kept
            self.kept = x.mean()
        return x


class NumbersItsLayers(WritesFirst):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(1):
            x = getattr(self, f"layer{i or ''}")(x) + getattr(self, "la" + "yer")(x)
        return super().forward(x)


class LooksUpAnyName(WritesFirst):
    def forward(self, x: Tensor, name: str = "") -> Tensor:
        y: Tensor = getattr(self, name)(x)
        return super().forward(y)


class NamesItByPrefix(WritesFirst):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + getattr(self, f"ke{'pt'}")
        return super().forward(y)


def wrapped(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that makes a module whose forward was replaced on the instance, as accelerate does."""

    def make_wrapped() -> nn.Module:
        module = make()
        old = module.forward

        def forward(*args: Any) -> Any:
            return old(*args)

        module.forward = forward
        return module

    return make_wrapped


FRESH: dict[str, Callable[[], nn.Module]] = {
    "written first": WritesFirst,
    "written only": WritesOnly,
    "reset": Resets,
    "by key": ByKey,
    "inherited": Inherits,
    "in a closure": InClosure,
    "by a hook": Hooked,
    "beside numbered layers": NumbersItsLayers,
    "in a wrapped forward": wrapped(WritesFirst),
}
CARRIED: dict[str, Callable[[], nn.Module]] = {
    "counted": Counts,
    "carried": Carries,
    "by shape": CachesByShape,
    "appended": Appends,
    "read later": ReadsLater,
    "elements counted": CountsElements,
    "in a method": CountsInMethod,
    "in a property": CountsInProperty,
    "by name": CountsByName,
    "passes itself": PassesItself,
    "in a hook": CountsInHook,
    "written elsewhere": Overwrites,
    "in a loop": ReadsOnALoop,
    "maybe by name": LooksUpAnyName,
    "in a wrapped forward": wrapped(Counts),
    "by a prefix of its name": NamesItByPrefix,
}


@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH)
def test_every_forward_writes_it_first(make: Callable[[], nn.Module]) -> None:
    assert attribute_use(make(), "kept", []) == "fresh"


@pytest.mark.parametrize("make", CARRIED.values(), ids=CARRIED)
def test_a_forward_may_read_what_an_earlier_one_stored(make: Callable[[], nn.Module]) -> None:
    assert attribute_use(make(), "kept", []) == "carried"


@pytest.mark.parametrize("make", [InMethods, WritesSometimes])
def test_some_forwards_write_it_and_others_read_it(make: Callable[[], nn.Module]) -> None:
    assert attribute_use(make(), "kept", []) == "conditional"


def test_the_container_may_write_it() -> None:
    model = Container()
    assert attribute_use(model.blocks[0], "kept", [model]) == "fresh"
    assert attribute_use(model.blocks[0], "kept", []) == "carried"


def test_a_container_that_looks_up_its_own_parts_does_not_read_it() -> None:
    assert attribute_use(WritesFirst(), "kept", [LooksUpAnyName()]) == "fresh"


def test_code_without_source_is_unclear() -> None:
    namespace: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        self.kept = x\n        return x", namespace)
    assert attribute_use(namespace["Made"](), "kept", []) == "carried"
