"""The accuracy that each fault costs the model of `examples/digits`, measured without and with the fault.

`python -m benchmarks.harm` prints one sentence per rule. `--write` inserts each sentence into the page of its rule.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pytest_evalmode.rules
from examples.digits.digits import DigitNet, load_split, train
from pytest_evalmode import HygieneError, guard

PAGES = Path(pytest_evalmode.rules.__file__).parent / "pages"
PREFIX = "Measured: "


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A trained digit classifier with its 1437 training images and 360 test images."""

    model: DigitNet
    training_set: tuple[Tensor, Tensor]
    """Images and labels."""
    images: Tensor
    labels: Tensor


@cache
def _trained() -> Evaluation:
    train_set, test_set = load_split()
    images, labels = test_set.tensors
    train_images, train_labels = train_set.tensors
    return Evaluation(train(train_set), (train_images, train_labels), images, labels)


def new_evaluation() -> Evaluation:
    """Return the evaluation with a new copy of the model, because each fault changes the model."""
    return replace(_trained(), model=copy.deepcopy(_trained().model))


@torch.no_grad()
def score(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 360) -> float:
    """Return the accuracy in percent, in the mode that the model is in."""
    digits = [model(part).argmax(1) for part in torch.split(images, batch)]
    return 100 * (torch.cat(digits) == labels).float().mean().item()


def train_mode() -> str:
    e = new_evaluation()
    right = score(e.model, e.images, e.labels)
    return (
        f"accuracy is {right:.1f} % in eval mode, and "
        f"{score(e.model.train(), e.images, e.labels, 2):.1f} % in training mode with batches of two."
    )


def grad_mode() -> str:
    e, saved = new_evaluation(), dict[int, int]()

    def count_bytes(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
        e.model(e.images)
    weights = sum(tensor.nbytes for tensor in e.model.parameters())
    return (
        f"for one batch of 360 images autograd keeps {sum(saved.values()) / 1e6:.0f} MB, "
        f"{sum(saved.values()) / weights:.0f} times the size of the model's weights."
    )


def state_mutated() -> str:
    e = new_evaluation()
    right = score(e.model, e.images, e.labels)
    score(e.model.train(), e.images * 0.5, e.labels, 8)
    return (
        "after one pass over faded images in training mode, the accuracy of the next evaluation is "
        f"{score(e.model.eval(), e.images, e.labels):.1f} %, not {right:.1f} %."
    )


def batch_stats() -> str:
    e = new_evaluation()
    for part in e.model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    order = e.labels.argsort()
    return (
        f"without running statistics, accuracy is {score(e.model, e.images, e.labels):.1f} % in one shuffled batch, "
        f"and {score(e.model, e.images[order], e.labels[order], 4):.1f} % in batches of 4, sorted by digit."
    )


class DropoutInEvalMode(DigitNet):
    """A model whose dropout ignores eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.dropout(self.features(images), 0.5))
        return logits


def random_forward() -> str:
    e = new_evaluation()
    model = DropoutInEvalMode().eval()
    model.load_state_dict(e.model.state_dict())
    with torch.no_grad():
        first, second = model(e.images).argmax(1), model(e.images).argmax(1)
    return (
        f"of 360 predictions, {int((first != second).sum())} differ the second time that the same model runs in eval "
        "mode."
    )


def unregistered_module() -> str:
    e = new_evaluation()
    saved = {key: tensor for key, tensor in e.model.state_dict().items() if not key.startswith("head")}
    restored = DigitNet().eval()
    restored.load_state_dict(saved, strict=False)
    return (
        "if `state_dict()` does not save the head of the model, accuracy is "
        f"{score(e.model, e.images, e.labels):.1f} % before saving, and "
        f"{score(restored, e.images, e.labels):.1f} % after loading."
    )


class Centered(DigitNet):
    """A model that subtracts a running mean of its inputs, and updates this mean in eval mode, too."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        self.center.lerp_(images.mean() - 0.3, 0.1)
        return super().forward(images - self.center)


def buffer_mutated() -> str:
    e = new_evaluation()
    model = Centered().eval()
    model.load_state_dict(e.model.state_dict())
    right = score(model, e.images, e.labels)
    score(model, 1 - e.images, e.labels)
    return (
        f"the accuracy of a model that subtracts a running mean of its inputs is {right:.1f} %, and "
        f"{score(model, e.images, e.labels):.1f} % after one batch of inverted images."
    )


class Squaring(DigitNet):
    """A model that squares its input in place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.square_().mul_(1.2))


def input_mutated() -> str:
    e = new_evaluation()
    model = Squaring().eval()
    model.load_state_dict(e.model.state_dict())
    images = e.images.clone()
    scores = [score(model, images, e.labels) for _ in range(3)]
    return (
        f"the accuracy of a model that squares its input in place is {scores[0]:.1f} %, then {scores[1]:.1f} %, then "
        f"{scores[2]:.1f} %, on the same tensor."
    )


class Scaling(DigitNet):
    """A model that divides its input by the largest value that it has seen."""

    peak = 1.0

    def forward(self, images: Tensor) -> Tensor:
        self.peak = max(self.peak, images.max().item())
        return super().forward(images / self.peak)


def attribute_mutated() -> str:
    e = new_evaluation()
    model = Scaling().eval()
    model.load_state_dict(e.model.state_dict())
    right = score(model, e.images, e.labels)
    score(model, e.images[:1] * 8, e.labels[:1])
    return (
        f"the accuracy of a model that divides by the largest value seen so far is {right:.1f} %, and "
        f"{score(model, e.images, e.labels):.1f} % after one image that is eight times too bright."
    )


def state_drifted() -> str:
    e = new_evaluation()
    right = score(e.model, e.images, e.labels)
    train_images, train_labels = e.training_set
    optimizer = torch.optim.AdamW(e.model.train().parameters(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(e.model(train_images[:16]), train_labels[:16]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (
        "after a test that trains the shared model for ten steps on 16 images, accuracy is "
        f"{score(e.model.eval(), e.images, e.labels):.1f} %, not {right:.1f} %."
    )


def partial_load() -> str:
    e = new_evaluation()
    saved = {f"module.{key}": tensor for key, tensor in e.model.state_dict().items()}
    restored = DigitNet().eval()
    ignored = restored.load_state_dict(saved, strict=False).unexpected_keys
    return (
        f"if the checkpoint's keys have the prefix `module.`, `strict=False` loads {len(saved) - len(ignored)} of "
        f"{len(saved)} tensors and raises no error; accuracy is {score(restored, e.images, e.labels):.1f} %, not "
        f"{score(e.model, e.images, e.labels):.1f} %."
    )


def model_leaked() -> str:
    e = new_evaluation()
    right = score(e.model, e.images, e.labels)
    e.model.features[0].register_forward_hook(lambda *call: call[2] * (torch.arange(16) > 3).view(-1, 1, 1))
    return (
        "after a test that leaves a hook that zeroes 4 of 16 channels, the accuracy in the next test is "
        f"{score(e.model, e.images, e.labels):.1f} %, not {right:.1f} %."
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
        f"after a test that leaves float64 as the default dtype, the next model needs {sizes[1] / sizes[0]:.1f} times "
        "the memory, and float32 inputs raise an error."
    )


def _count_violations(run: Callable[[], object], *, exempt: str = "") -> int:
    """Run a function under a guard and return the number of violations."""
    try:
        with torch.no_grad(), guard(train=exempt or (), mutable=exempt or ()):
            run()
    except HygieneError as error:
        return len(error.violations)
    return 0


def no_forward() -> str:
    e = new_evaluation()
    inside = _count_violations(lambda: score(e.model.train(), e.images, e.labels))
    right = score(e.model, e.images, e.labels)
    return (
        f"a forgotten `eval()` causes {inside} violations; if a fixture runs the model, the guard of the test reports "
        f"{_count_violations(lambda: right > 90)}."
    )


def unused_exemption() -> str:
    e = new_evaluation()
    all_, reported = (
        _count_violations(lambda: score(e.model.train(), e.images, e.labels), exempt=glob) for glob in ("", "*")
    )
    return (
        f'a forgotten `eval()` causes {all_} violations; with a leftover `train="*", mutable="*"` the guard reports '
        f"{reported}."
    )


def model_changed() -> str:
    e = new_evaluation()
    train_set, _ = load_split()
    early = train(train_set, epochs=1)
    return (
        "the checkpoint of the first epoch loads without an error, like that of the last; accuracy is "
        f"{score(early, e.images, e.labels):.1f} %, not {score(e.model, e.images, e.labels):.1f} %."
    )


def inputs_changed() -> str:
    e = new_evaluation()
    return (
        f"with height and width swapped, accuracy is {score(e.model, e.images.mT, e.labels):.1f} %, not "
        f"{score(e.model, e.images, e.labels):.1f} %; all shapes are the same."
    )


def preprocessing_changed() -> str:
    e = new_evaluation()
    return (
        "with inputs normalized by mean 0.5 and std 0.5, but a model trained without normalization, accuracy is "
        f"{score(e.model, (e.images - 0.5) / 0.5, e.labels):.1f} %, not "
        f"{score(e.model, e.images, e.labels):.1f} %."
    )


@torch.no_grad()
def outputs_changed() -> str:
    e = new_evaluation()
    logits = e.model(e.images)
    right, wrong = ((logits.softmax(dim).argmax(1) == e.labels).float().mean().item() for dim in (1, 0))
    return (
        "with `softmax(0)` instead of `softmax(1)`, model, inputs and preprocessing match, and every output is between "
        f"0 and 1; accuracy is {100 * wrong:.1f} %, not {100 * right:.1f} %."
    )


MEASUREMENTS: Mapping[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
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
    """Return the line for the page of one rule."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PREFIX + MEASUREMENTS[rule]()


def main() -> None:
    torch.set_num_threads(1)
    for rule in MEASUREMENTS:
        sentence = measure(rule)
        print(f"{rule}: {sentence.removeprefix(PREFIX)}")
        page = PAGES / f"{rule}.md"
        if "--write" in sys.argv:
            lines = page.read_text(encoding="utf-8").splitlines()
            if not any(line.startswith(PREFIX) for line in lines):
                sys.exit(f"{page} has no line that begins with {PREFIX!r} to replace; add one")
            lines = [sentence if line.startswith(PREFIX) else line for line in lines]
            page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
