"""What each fault costs: the digit reader of `examples/digits`, scored without the fault and with it.

`python -m benchmarks.harm` prints one sentence a rule, `--write` puts each into the page of its rule.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pytest_evalmode.rules
from examples.digits.digits import DigitNet, load_split, train
from pytest_evalmode import HygieneError, guard

PAGES = Path(pytest_evalmode.rules.__file__).parent / "pages"
BEGINS = "Measured: "


@dataclass(frozen=True, slots=True)
class Reader:
    """A trained digit reader, 1437 images that it was trained on, and 360 that it was not."""

    model: DigitNet
    seen: tuple[Tensor, Tensor]
    images: Tensor
    labels: Tensor


@cache
def _trained() -> Reader:
    train_set, test_set = load_split()
    images, labels = test_set.tensors
    seen, answers = train_set.tensors
    return Reader(train(train_set), (seen, answers), images, labels)


def reader() -> Reader:
    """With a model of its own each time: the faults do it harm."""
    trained = _trained()
    return Reader(copy.deepcopy(trained.model), trained.seen, trained.images, trained.labels)


@torch.no_grad()
def score(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 360) -> float:
    """The per cent of images read right, in whatever mode the model is."""
    answers = [model(part).argmax(1) for part in torch.split(images, batch)]
    return 100 * (torch.cat(answers) == labels).float().mean().item()


def train_mode() -> str:
    r = reader()
    right = score(r.model, r.images, r.labels)
    return (
        f"{right:.1f} % of the digits are read right in eval mode, "
        f"{score(r.model.train(), r.images, r.labels, 2):.1f} % in training mode, two at a time."
    )


def grad_mode() -> str:
    r, kept = reader(), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        r.model(r.images)
    weights = sum(tensor.nbytes for tensor in r.model.parameters())
    return (
        f"for one batch of 360 images autograd keeps {sum(kept.values()) / 1e6:.0f} MB, "
        f"{sum(kept.values()) / weights:.0f} times the weights of the model."
    )


def state_mutated() -> str:
    r = reader()
    right = score(r.model, r.images, r.labels)
    score(r.model.train(), r.images * 0.5, r.labels, 8)
    return (
        "after one pass over faded images in training mode, the next evaluation reads "
        f"{score(r.model.eval(), r.images, r.labels):.1f} % right, and not {right:.1f} %."
    )


def batch_stats() -> str:
    r = reader()
    for part in r.model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    order = r.labels.argsort()
    return (
        f"without running statistics {score(r.model, r.images, r.labels):.1f} % are read right in one mixed batch, "
        f"and {score(r.model, r.images[order], r.labels[order], 4):.1f} % when sorted by digit, four at a time."
    )


class Dropping(DigitNet):
    """Its dropout knows no mode."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.dropout(self.features(images), 0.5))
        return logits


def random_forward() -> str:
    r = reader()
    model = Dropping().eval()
    model.load_state_dict(r.model.state_dict())
    with torch.no_grad():
        first, second = model(r.images).argmax(1), model(r.images).argmax(1)
    return (
        f"of 360 digits, {int((first != second).sum())} are read otherwise the second time, by the same model in "
        "eval mode."
    )


def unregistered_module() -> str:
    r = reader()
    saved = {key: tensor for key, tensor in r.model.state_dict().items() if not key.startswith("head")}
    restored = DigitNet().eval()
    restored.load_state_dict(saved, strict=False)
    return (
        "with its head outside of what `state_dict()` saves, the model reads "
        f"{score(r.model, r.images, r.labels):.1f} % right before it is saved, and "
        f"{score(restored, r.images, r.labels):.1f} % when it is loaded again."
    )


class Centred(DigitNet):
    """Subtracts a running mean of what it was given, and learns it in eval mode too."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        self.centre.lerp_(images.mean() - 0.3, 0.1)
        return super().forward(images - self.centre)


def buffer_mutated() -> str:
    r = reader()
    model = Centred().eval()
    model.load_state_dict(r.model.state_dict())
    right = score(model, r.images, r.labels)
    score(model, 1 - r.images, r.labels)
    return (
        f"a model that centres its input by a running mean reads {right:.1f} % right, and "
        f"{score(model, r.images, r.labels):.1f} % right after it one batch of negatives."
    )


class Sharpening(DigitNet):
    """Takes the square of its input, in place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.square_().mul_(1.2))


def input_mutated() -> str:
    r = reader()
    model = Sharpening().eval()
    model.load_state_dict(r.model.state_dict())
    images = r.images.clone()
    scores = [score(model, images, r.labels) for _ in range(3)]
    return (
        f"a model that squares its input in place reads {scores[0]:.1f} % right, then {scores[1]:.1f} %, then "
        f"{scores[2]:.1f} %, of the same tensor."
    )


class Scaling(DigitNet):
    """Divides by the largest value that it has ever seen."""

    peak = 1.0

    def forward(self, images: Tensor) -> Tensor:
        self.peak = max(self.peak, images.max().item())
        return super().forward(images / self.peak)


def attribute_mutated() -> str:
    r = reader()
    model = Scaling().eval()
    model.load_state_dict(r.model.state_dict())
    right = score(model, r.images, r.labels)
    score(model, r.images[:1] * 8, r.labels[:1])
    return (
        f"a model that divides by the largest value it has seen reads {right:.1f} % right, and "
        f"{score(model, r.images, r.labels):.1f} % after one image that was eight times too bright."
    )


def state_drifted() -> str:
    r = reader()
    right = score(r.model, r.images, r.labels)
    seen, answers = r.seen
    optimizer = torch.optim.AdamW(r.model.train().parameters(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(r.model(seen[:16]), answers[:16]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (
        "a test that trains the shared model for ten steps on 16 images leaves it reading "
        f"{score(r.model.eval(), r.images, r.labels):.1f} % right, and not {right:.1f} %."
    )


def partial_load() -> str:
    r = reader()
    saved = {f"module.{key}": tensor for key, tensor in r.model.state_dict().items()}
    restored = DigitNet().eval()
    ignored = restored.load_state_dict(saved, strict=False).unexpected_keys
    return (
        f"with the prefix `module.` in the checkpoint, `strict=False` loads {len(saved) - len(ignored)} of "
        f"{len(saved)} tensors without a word; {score(restored, r.images, r.labels):.1f} % are read right, and not "
        f"{score(r.model, r.images, r.labels):.1f} %."
    )


def model_leaked() -> str:
    r = reader()
    right = score(r.model, r.images, r.labels)
    r.model.features[0].register_forward_hook(lambda *call: call[2] * (torch.arange(16) > 3).view(-1, 1, 1))
    return (
        "a hook that switches four of 16 channels off, left behind by a test, leaves the next one "
        f"{score(r.model, r.images, r.labels):.1f} %, and not {right:.1f} %."
    )


def global_leaked() -> str:
    before = DigitNet()
    torch.set_default_dtype(torch.float64)
    try:
        after = DigitNet()
    finally:
        torch.set_default_dtype(torch.float32)
    sizes = [sum(tensor.nbytes for tensor in model.parameters()) for model in (before, after)]
    return (
        f"after a test that left float64 as the default, the next model takes {sizes[1] / sizes[0]:.1f} times the "
        "bytes, and refuses float32 input."
    )


def _found(run: Callable[[], object], *, exempt: str = "") -> int:
    """How many violations a guard around it tells of."""
    try:
        with torch.no_grad(), guard(train=exempt or (), mutable=exempt or ()):
            run()
    except HygieneError as error:
        return len(error.violations)
    return 0


def no_forward() -> str:
    r = reader()
    inside = _found(lambda: score(r.model.train(), r.images, r.labels))
    right = score(r.model, r.images, r.labels)
    return (
        f"of the {inside} violations of a forgotten `eval()`, the guard of a test whose fixture predicts finds "
        f"{_found(lambda: right > 90)}."
    )


def unused_exemption() -> str:
    r = reader()
    plain, excused = (_found(lambda: score(r.model.train(), r.images, r.labels), exempt=glob) for glob in ("", "*"))
    return (
        f'of the {plain} violations of a forgotten `eval()`, a left-over `train="*", mutable="*"` leaves '
        f"{excused} to be told."
    )


def model_changed() -> str:
    r = reader()
    train_set, _ = load_split()
    early = train(train_set, epochs=1)
    return (
        "the checkpoint of the first epoch loads as well as that of the last, and reads "
        f"{score(early, r.images, r.labels):.1f} % right, not {score(r.model, r.images, r.labels):.1f} %."
    )


def inputs_changed() -> str:
    r = reader()
    return (
        f"with height and width swapped, {score(r.model, r.images.mT, r.labels):.1f} % are read right, and not "
        f"{score(r.model, r.images, r.labels):.1f} %; no shape tells."
    )


def preprocessing_changed() -> str:
    r = reader()
    return (
        "normalised with mean 0.5 and std 0.5, where the model was trained without, "
        f"{score(r.model, (r.images - 0.5) / 0.5, r.labels):.1f} % are read right, and not "
        f"{score(r.model, r.images, r.labels):.1f} %."
    )


@torch.no_grad()
def outputs_changed() -> str:
    r = reader()
    logits = r.model(r.images)
    right, wrong = ((logits.softmax(dim).argmax(1) == r.labels).float().mean().item() for dim in (1, 0))
    return (
        "with `softmax(0)` for `softmax(1)`, model, inputs and preprocessing all hold, every output lies between 0 "
        f"and 1, and {100 * wrong:.1f} % are read right, not {100 * right:.1f} %."
    )


HARM: Mapping[str, Callable[[], str]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        train_mode,
        grad_mode,
        batch_stats,
        random_forward,
        unregistered_module,
        state_mutated,
        buffer_mutated,
        input_mutated,
        attribute_mutated,
        state_drifted,
        partial_load,
        model_leaked,
        global_leaked,
        no_forward,
        model_changed,
        preprocessing_changed,
        inputs_changed,
        outputs_changed,
        unused_exemption,
    )
}


def measure(rule: str) -> str:
    """The sentence about one rule."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return BEGINS + HARM[rule]()


def main() -> None:
    torch.set_num_threads(1)
    for rule in HARM:
        said = measure(rule)
        print(f"{rule}: {said.removeprefix(BEGINS)}")
        page = PAGES / f"{rule}.md"
        if "--write" in sys.argv:
            lines = page.read_text(encoding="utf-8").splitlines()
            if not any(line.startswith(BEGINS) for line in lines):
                sys.exit(f"{page} has no line that begins with {BEGINS!r}, where this could stand")
            lines = [said if line.startswith(BEGINS) else line for line in lines]
            page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
