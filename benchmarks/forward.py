"""The cost of guarding a forward, compared with the same forward without a guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.models import bert, decoder, layers, resnet50
from benchmarks.timing import Row, Times, interleaved, one_thread, warm
from pytest_evalmode import guard

CALLS = 1000


def run() -> Iterator[Row]:
    with torch.inference_mode():
        yield from networks()
        with one_thread():  # forwards this small do not use a second thread
            yield from many_calls()


def networks() -> Iterator[Row]:
    resnet, image = resnet50(), torch.rand(1, 3, 224, 224)
    yield percent("ResNet-50, 1 image", watched(resnet, lambda: resnet(image)), bar=3)
    images = image.repeat(8, 1, 1, 1)
    yield percent("ResNet-50, 8 images", watched(resnet, lambda: resnet(images)), bar=3)
    encoder, tokens = bert(), torch.arange(128).unsqueeze(0)
    yield percent("BERT-base, 128 tokens", watched(encoder, lambda: encoder(tokens)), bar=3)


def many_calls() -> Iterator[Row]:
    """Measure forwards that are so cheap that the cost of guarding each call shows."""
    language, prompt = decoder(), torch.arange(4).unsqueeze(0)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 100, "do_sample": False, "pad_token_id": 0}
    yield percent("generate() of 100 tokens", watched(language, lambda: language.generate(prompt, **options)))

    tiny, row = layers(CALLS), torch.rand(1, 4)
    times = watched(tiny, lambda: tiny(row))
    yield percent(f"{CALLS} tiny layers", times)
    yield Row(f"{CALLS} tiny layers: each", 1e6 * times.extra("guarded", "plain") / CALLS, "µs", aim=2)
    times = watched(tiny, lambda: tiny(row), strict=True)
    yield Row(f"{CALLS} tiny layers: each, strict", 1e6 * times.extra("guarded", "plain") / CALLS, "µs", aim=4)

    cell, state = nn.GRUCell(64, 64).eval(), torch.zeros(1, 64)

    def recur() -> None:
        hidden = state
        for _ in range(CALLS):
            hidden = cell(state, hidden)

    times = watched(cell, recur)
    yield percent(f"a recurrent cell called {CALLS} times", times)
    yield Row("a recurrent cell: each call", 1e6 * times.extra("guarded", "plain") / CALLS, "µs")


def percent(what: str, times: Times, bar: float | None = None) -> Row:
    return Row(what, 100 * (times.ratio("guarded", "plain") - 1), "%", bar, aim=2 if bar else None)


def watched(model: nn.Module, forward: Callable[[], object], *, strict: bool = False) -> Times:
    """Time a forward outside and inside a guard."""

    def guarded() -> float:
        with guard(model, strict=strict):
            return warm(forward)

    return interleaved({"plain": lambda: warm(forward), "guarded": guarded}, seconds=20)
