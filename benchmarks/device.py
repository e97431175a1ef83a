"""The cost of guarding on an accelerator: reading models and running forwards there.

`python -m benchmarks.device` runs only this section.  Without an accelerator it uses the CPU and smaller models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.models import bert, layers, linears, resnet50, tensors
from benchmarks.state import guard
from benchmarks.timing import Measure, Row, interleaved, warm
from pytest_evalmode import guard as guarding

SECONDS = 2
HOST = torch.device("cpu")


def run() -> Iterator[Row]:
    """Measure on the accelerator; without one, yield no rows."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        print("  no accelerator found; `python -m benchmarks.device` runs this section on the CPU")
        return
    yield from measure(device)


def measure(device: torch.device) -> Iterator[Row]:
    """Measure on a device; on the CPU only small models run, to try the code."""
    speed = bandwidth(device, 1 << (22 if device == HOST else 31))
    yield Row("a copy on the device, bytes read and written", speed / 1e9, "GB/s")
    for what, model in models(device):
        yield from state(what, model, speed)
    yield from forwards(device)


def models(device: torch.device) -> Iterator[tuple[str, nn.Module]]:
    """Yield one model at a time, so that only one is in memory."""
    yield "ResNet-50", resnet50().to(device)
    if device == HOST:
        yield "17 M parameters", linears(17)
        return
    yield "BERT-base", bert().to(device)
    yield "1 B parameters", linears(1000, str(device))
    if free_memory(device) > 30e9:  # for the model and a copy
        yield "7 B parameters", linears(7000, str(device))
    yield "1000 small tensors", tensors(1000, 100).to(device)


def free_memory(device: torch.device) -> float:
    """Return the free memory of a device in bytes."""
    get_info: Callable[[], tuple[int, int]] = getattr(torch.get_device_module(device), "mem_get_info", lambda: (0, 0))
    return get_info()[0]


def bandwidth(device: torch.device, size: int) -> float:
    """Return the bytes per second of a copy on the device."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": timed(device, lambda: target.copy_(source))}, seconds=1)
    return 2 * size / min(times.rounds["copy"])


def timed(device: torch.device, run: Callable[[], object]) -> Measure:
    """Return a measurement that includes the time until the device is idle again."""

    def whole() -> None:
        run()
        if device != HOST:
            torch.accelerator.synchronize(device)

    return lambda: warm(whole)


def state(what: str, model: nn.Module, speed: float) -> Iterator[Row]:
    device = next(model.parameters()).device
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    runs = {"guard": guard, "read": read, "by hand": by_hand}
    times = interleaved({name: timed(device, partial(run, model)) for name, run in runs.items()}, seconds=SECONDS)
    yield Row(f"{what}: size", size / 1e6, "MB")
    yield Row(f"{what}: enter + exit on the device", 1e3 * times["guard"], "ms")
    yield Row(f"{what}: one read on the device", 1e3 * times["read"], "ms")
    yield Row(f"{what}: a copy and torch.equal there", 1e3 * times["by hand"], "ms")
    limit = 2.5 if size >= 100e6 else None
    yield Row(f"{what}: enter + exit relative to one read there", times.ratio("guard", "read"), "x", aim=limit)
    yield Row(f"{what}: relative to a copy and torch.equal there", times.ratio("guard", "by hand"), "x")
    yield Row(f"{what}: share of the bandwidth", 100 * 2 * size / times["guard"] / speed, "%")


def read(model: nn.Module) -> None:
    """Read every byte once: the minimum that any check needs."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.max()


def by_hand(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def forwards(device: torch.device) -> Iterator[Row]:
    resnet, tiny = resnet50().to(device), layers(100).to(device)
    small, large, side = (1, 2, 64) if device == HOST else (1, 128, 224)
    with torch.inference_mode():
        for size in (small, large):
            images = torch.rand(size, 3, side, side, device=device)
            yield forward(f"ResNet-50, {size} images of {side}", resnet, images)
        yield forward("100 tiny layers", tiny, torch.rand(1, 4, device=device), aim=None)


def forward(what: str, model: nn.Module, x: torch.Tensor, aim: float | None = 2) -> Row:
    measure = timed(x.device, lambda: model(x))

    def guarded() -> float:
        with guarding(model):
            return measure()

    times = interleaved({"plain": measure, "guarded": guarded}, seconds=SECONDS)
    return Row(f"{what}, guarded", 100 * (times.ratio("guarded", "plain") - 1), "%", aim=aim)


if __name__ == "__main__":
    from benchmarks.__main__ import print_rows

    list(print_rows(measure(torch.accelerator.current_accelerator(check_available=True) or HOST)))
