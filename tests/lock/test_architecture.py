"""The architecture of a model: what is described, what counts as a change, and the folding of repeated layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode.lock import model_entry
from pytest_evalmode.lock.architecture import describe_architecture, find_module_changes


class Norm(nn.Module):
    """A norm whose eps has another name, as in transformers, with a counter and a cache."""

    def __init__(self, size: int, eps: float = 1e-6, index: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps
        self.layer_idx = index
        self.calls = 0
        self.last_size: int | None = None
        self.path = "/home/me/weights.pt"

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self._scale(x)

    def _scale(self, x: Tensor) -> Tensor:
        self.last_size = len(x)
        y: Tensor = x * self.weight * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return y


class Printed(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self._slope = slope

    def extra_repr(self) -> str:
        return f"slope={self._slope}"


def stack(count: int = 3, **changes: Any) -> nn.Module:
    return nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), Norm(4, index=i, **changes)) for i in range(count)])


def changes(was: nn.Module, now: nn.Module) -> list[tuple[str, str, str | None, str | None]]:
    found = find_module_changes(describe_architecture(was), describe_architecture(now))
    return [(each.path, each.setting, each.was, each.now) for each in found]


def test_equal_layers_share_a_line() -> None:
    contents = model_entry.read_contents(stack())
    assert contents.architecture["1.0"] == "Linear(in_features=4, out_features=4)"
    entry = model_entry.build_entry(contents)
    assert entry["architecture"]["Linear(in_features=4, out_features=4)"] == "0.0 1.0 2.0"
    assert entry["architecture"]["Sequential()"] == " 0 1 2"
    assert model_entry.parse_architecture(entry) == contents.architecture


def test_names_of_modules_may_have_spaces_and_percent_signs() -> None:
    net = nn.ModuleDict({"first part": nn.ReLU(), "100%": nn.ReLU(), "a%20b": nn.ReLU(), "a b": nn.ReLU()})
    contents = model_entry.read_contents(net)
    entry = model_entry.build_entry(contents)
    assert model_entry.parse_architecture(entry) == contents.architecture
    assert model_entry.matches(entry, contents)


def test_settings_are_compared_under_any_name() -> None:
    expected = [(f"{i}.1", "variance_epsilon", "1e-06", "0.001") for i in range(3)]
    assert changes(stack(), stack(eps=1e-3)) == expected
    assert changes(Printed(0.1), Printed(0.2)) == [("", "slope", "0.1", "0.2")]


def test_counters_caches_and_paths_are_not_settings() -> None:
    net = stack()
    before = describe_architecture(net)
    net(torch.ones(2, 4))
    assert describe_architecture(net) == before
    assert "home" not in str(before)


@pytest.mark.parametrize(
    ("was", "now", "setting"),
    [
        (nn.LeakyReLU(0.01), nn.LeakyReLU(0.2), "negative_slope"),
        (nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=2), "padding"),
        (nn.Upsample(2, mode="bilinear"), nn.Upsample(2, mode="bilinear", align_corners=True), "align_corners"),
        (nn.Dropout(0.1), nn.Dropout(0.5), "p"),
        (nn.ReLU(), nn.ReLU6(), ""),
    ],
)
def test_settings_of_torch(was: nn.Module, now: nn.Module, setting: str) -> None:
    assert [each[1] for each in changes(was, now)][:1] == [setting]


def test_missing_and_new_modules() -> None:
    assert changes(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), nn.Tanh())) == [("1", "", None, "Tanh")]


def test_in_place_and_wrappers_are_no_changes() -> None:
    assert changes(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(inplace=True))) == []
    assert changes(nn.Sequential(nn.ReLU()), nn.Sequential(nn.DataParallel(nn.ReLU()))) == []


def test_a_traced_model_is_not_compared() -> None:
    assert changes(stack(), torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))) == []
