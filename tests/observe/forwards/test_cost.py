from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_module_registration_hook

from pytest_evalmode.observe.forwards import cost
from tests.nets import Net, batch, watching


@pytest.fixture(autouse=True)
def clear_cache() -> Iterator[None]:
    cost.timed_share.cache_clear()
    yield
    cost.timed_share.cache_clear()


def test_timed_share_is_between_zero_and_one() -> None:
    assert 0 < cost.timed_share() <= 1


def test_measuring_is_invisible_to_hooks_and_guards() -> None:
    observed: list[nn.Module] = []
    torch.manual_seed(0)
    before = torch.get_rng_state()
    hooks = (
        register_module_forward_pre_hook(lambda module, args: observed.append(module)),
        register_module_module_registration_hook(lambda module, name, part: observed.append(module)),
    )
    try:
        with watching() as g:
            cost.timed_share()
    finally:
        for hook in hooks:
            hook.remove()
    assert not observed
    assert not g.window.models
    assert torch.equal(torch.get_rng_state(), before)


def test_reported_cost_is_at_least_the_timed_cost() -> None:
    cost.timed_share.cache_clear()
    with torch.no_grad(), watching() as g:
        Net().eval()(batch())
    timed = g.window.observers.forwards.seconds
    assert g.window.seconds >= g.window._seconds + timed > timed > 0
