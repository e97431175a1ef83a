"""Five silent causes of a lower accuracy, each injected into the same evaluation of the same model.

    pytest test_lost_accuracy.py --evalmode-update-lock    record the validated model, images and preprocessing
    pytest test_lost_accuracy.py --inject                  break the evaluation; each test reports the cause

Without the plugin all tests pass, because the accuracy stays above the limit in the test.
"""

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from digits import DigitNet, load_split, train
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from pytest_evalmode.lock.lock_fixture import EvaluationLock


@dataclass(frozen=True)
class Normalize:
    """Scales pixels of type uint8 to [0, 1] and normalizes them."""

    mean: float
    std: float

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels / 255 - self.mean) / self.std


OWN = Normalize(mean=0.305, std=0.376)  # the statistics of the training set
MNIST = Normalize(mean=0.1307, std=0.3081)  # the statistics of another data set


@dataclass
class Evaluation:
    """The model, the data and the preprocessing of an evaluation."""

    model: DigitNet
    pixels: Tensor
    labels: Tensor
    normalize: Normalize


def pixels_of(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def trained() -> DigitNet:
    images, labels = load_split()[0].tensors
    return train(TensorDataset(OWN(pixels_of(images)), labels))


def forgotten_eval(evaluation: Evaluation) -> None:
    """The model comes from the training loop, and `eval()` is not called."""
    evaluation.model.train()


def moved_statistics(evaluation: Evaluation) -> None:
    """An earlier evaluation of fainter scans ran in training mode and changed the running statistics."""
    evaluation.model.train()
    with torch.no_grad():
        for pixels in (evaluation.pixels / 2).split(8):  # type: ignore[no-untyped-call]
            evaluation.model(evaluation.normalize(pixels))
    evaluation.model.eval()


def dropped_tensor(evaluation: Evaluation) -> None:
    """One tensor is missing in the checkpoint, and `strict=False` raises no error."""
    checkpoint = evaluation.model.state_dict()
    del checkpoint["features.5.running_mean"]
    evaluation.model = DigitNet().eval()
    evaluation.model.load_state_dict(checkpoint, strict=False)


def jpeg(evaluation: Evaluation) -> None:
    """The images were stored as JPEG to save space."""
    files = [io.BytesIO() for _ in evaluation.pixels]
    for file, pixels in zip(files, evaluation.pixels, strict=True):
        Image.fromarray(pixels[0].numpy()).save(file, "JPEG", quality=10)
    evaluation.pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).unsqueeze(1)


def wrong_statistics(evaluation: Evaluation) -> None:
    """`Normalize` was copied from a project with another data set."""
    evaluation.normalize = MNIST


CAUSES: dict[str, Callable[[Evaluation], None]] = {
    "forgotten eval()": forgotten_eval,
    "running statistics moved by an earlier run": moved_statistics,
    "one tensor missing in the checkpoint": dropped_tensor,
    "images stored as JPEG": jpeg,
    "Normalize with other statistics": wrong_statistics,
}


@pytest.fixture(params=list(CAUSES.values()), ids=list(CAUSES))
def evaluation(request: pytest.FixtureRequest, trained: DigitNet, test_set: TensorDataset) -> Iterator[Evaluation]:
    images, labels = test_set.tensors
    evaluation = Evaluation(copy.deepcopy(trained), pixels_of(images), labels, OWN)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.config.getoption("--inject"):
            request.param(evaluation)
        yield evaluation


@pytest.mark.inference
def test_accuracy(evaluation: Evaluation, evalmode_lock: EvaluationLock) -> None:
    evalmode_lock.model(evaluation.model, "model")
    evalmode_lock.preprocessing(evaluation.normalize, "preprocessing")
    images = evalmode_lock.inputs(evaluation.normalize(evaluation.pixels), "images")
    with torch.no_grad():
        digits = torch.cat([evaluation.model(batch).argmax(dim=1) for batch in images.split(8)])  # type: ignore[no-untyped-call]
    accuracy = (digits == evaluation.labels).float().mean().item()
    evalmode_lock.outputs(accuracy, "accuracy", rtol=0.0, atol=0.001)
    assert accuracy > 0.5
