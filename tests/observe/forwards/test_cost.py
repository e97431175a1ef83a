from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_module_registration_hook

from pytest_evalmode.observe.forwards import cost
from tests.nets import Net, batch, watching


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    cost.timed_share.cache_clear()
    yield
    cost.timed_share.cache_clear()


def test_a_part_of_the_cost_is_timed() -> None:
    assert 0 < cost.timed_share() <= 1


def test_nobody_sees_how_it_is_found_out() -> None:
    seen: list[nn.Module] = []
    torch.manual_seed(0)
    before = torch.get_rng_state()
    hooks = (
        register_module_forward_pre_hook(lambda module, args: seen.append(module)),
        register_module_module_registration_hook(lambda module, name, part: seen.append(module)),
    )
    try:
        with watching() as g:
            cost.timed_share()
    finally:
        for hook in hooks:
            hook.remove()
    assert not seen
    assert not g.models
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_window_cost_is_more_than_what_was_timed() -> None:
    cost.timed_share.cache_clear()
    with torch.no_grad(), watching() as g:
        Net().eval()(batch())
    timed = g._window.observers.forwards.seconds
    assert g.seconds >= g._window.seconds + timed > timed > 0
