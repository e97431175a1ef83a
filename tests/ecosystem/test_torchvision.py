"""Transforms of torchvision and timm, which are locked, and models of timm, which are guarded."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode.lock.preprocessing import describe, find_differences
from tests import suites
from tests.nets import rules, watching

pytest.importorskip("torchvision")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their imports
    v1: Any = import_module("torchvision.transforms")
    v2: Any = import_module("torchvision.transforms.v2")
    weights: Any = import_module("torchvision.models").ResNet50_Weights
    Image: Any = import_module("PIL.Image")
    timm: Any = import_module("timm") if find_spec("timm") else None
    create_transform: Any = import_module("timm.data").create_transform if timm else None

pytestmark = pytest.mark.filterwarnings("ignore")
needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BILINEAR, BICUBIC = v1.InterpolationMode.BILINEAR, v1.InterpolationMode.BICUBIC
TO_TENSOR = (v1.ToTensor(),)
Make = Callable[[], Any]


def v1_transform(
    *extra: Any, size: Any = 256, crop: Any = 224, to: Any = TO_TENSOR, by: Any = IMAGENET, **resize: Any
) -> Any:
    """Make an evaluation pipeline of torchvision's v1 transforms."""
    return v1.Compose([v1.Resize(size, **resize), v1.CenterCrop(crop), *extra, *to, v1.Normalize(*by)])


def v2_transform(
    *extra: Any, size: Any = 256, crop: Any = 224, scale: bool = True, dtype: Any = torch.float32, **resize: Any
) -> Any:
    """Make an evaluation pipeline of v2 transforms that converts to a tensor first."""
    to = v2.ToDtype(dtype, scale=scale)
    return v2.Compose(
        [v2.ToImage(), v2.Resize(size, **resize), v2.CenterCrop(crop), *extra, to, v2.Normalize(*IMAGENET)]
    )


def timm_transform(**arguments: Any) -> Any:
    return create_transform(**{"input_size": 224, "is_training": False, **arguments})


def v2_pil_transform(*steps: Any) -> Any:
    """Make the pipeline of `v1_transform()` from v2 transforms: the image stays a Pillow image until after the crop."""
    scaled = steps or (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))
    return v2.Compose([v2.Resize(256), v2.CenterCrop(224), *scaled, v2.Normalize(*IMAGENET)])


SAME: dict[str, tuple[Make, Make]] = {
    "made again": (v1_transform, v1_transform),
    "lists": (v1_transform, lambda: v1_transform(by=[list(each) for each in IMAGENET])),
    "tensors": (v1_transform, lambda: v1_transform(by=[torch.tensor(each) for each in IMAGENET])),
    "arrays": (v1_transform, lambda: v1_transform(by=[torch.tensor(each).numpy() for each in IMAGENET])),
    "a size in a list": (v1_transform, lambda: v1_transform(size=[256])),
    "a crop in a tuple": (v1_transform, lambda: v1_transform(crop=(224, 224))),
    "the default named": (v1_transform, lambda: v1_transform(interpolation=BILINEAR, antialias=True)),
    "Pillow's constant": (v1_transform, lambda: v1_transform(interpolation=Image.Resampling.BILINEAR)),
    "a nested pipeline": (
        v1_transform,
        lambda: v1.Compose([v1.Compose([v1.Resize(256), v1.CenterCrop(224)]), v1.ToTensor(), v1.Normalize(*IMAGENET)]),
    ),
    "in two steps": (v1_transform, lambda: v1_transform(to=(v1.PILToTensor(), v1.ConvertImageDtype(torch.float32)))),
    "in v2": (v1_transform, v2_pil_transform),
    "in v2, with its ToTensor": (v1_transform, lambda: v2_pil_transform(v2.ToTensor())),
    "in v2, no subclass": (
        v1_transform,
        lambda: v2_pil_transform(v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()),
    ),
    "the transforms of the weights": (v1_transform, lambda: weights.IMAGENET1K_V1.transforms()),
    "v2 made again": (v2_transform, v2_transform),
    "v2, the default named": (v2_transform, lambda: v2_transform(interpolation=BILINEAR)),
}
TIMM_SAME: dict[str, tuple[Make, Make]] = {
    "made again": (timm_transform, timm_transform),
    "a size in a tuple": (timm_transform, lambda: timm_transform(input_size=(3, 224, 224))),
    "by hand": (timm_transform, v1_transform),
}


def make_image() -> Any:
    pixels = torch.randint(256, (300, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


def describe_differences(make: tuple[Make, Make]) -> list[str]:
    """Return the differences of two pipelines whose descriptions were written to a file."""
    before, after = (json.loads(json.dumps(describe(each()))) for each in make)
    return find_differences(before, after)


def assert_same_results(pair: tuple[Make, Make]) -> None:
    one, other = (make()(make_image()).as_subclass(Tensor) for make in pair)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # v2 multiplies by 1 / 255 where v1 divides


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_a_pipeline_written_in_another_way_is_unchanged(pair: tuple[Make, Make]) -> None:
    assert describe_differences(pair) == []
    assert describe_differences((pair[1], pair[0])) == []
    assert_same_results(pair)


@needs_timm
@pytest.mark.parametrize("pair", TIMM_SAME.values(), ids=TIMM_SAME)
def test_a_timm_pipeline_written_in_another_way_is_unchanged(pair: tuple[Make, Make]) -> None:
    assert describe_differences(pair) == []
    assert_same_results(pair)


def swapped(image: Tensor) -> Tensor:
    return image[[2, 1, 0]]


CHANGED: dict[str, tuple[Make, Make, str]] = {
    "mean": (
        v1_transform,
        lambda: v1_transform(by=(HALF[0], IMAGENET[1])),
        "Normalize.mean: (0.485, 0.456, 0.406) -> (0.5, 0.5, 0.5)",
    ),
    "std": (
        v1_transform,
        lambda: v1_transform(by=(IMAGENET[0], HALF[1])),
        "Normalize.std: (0.229, 0.224, 0.225) -> (0.5, 0.5, 0.5)",
    ),
    "interpolation": (
        v1_transform,
        lambda: v1_transform(interpolation=BICUBIC),
        "Resize.interpolation: 'bilinear' -> 'bicubic'",
    ),
    "antialias": (v1_transform, lambda: v1_transform(antialias=False), "Resize.antialias: True -> False"),
    "size": (v1_transform, lambda: v1_transform(size=232), "Resize.size: 256 -> 232"),
    "shape": (v1_transform, lambda: v1_transform(size=(256, 256)), "Resize.size: 256 -> (256, 256)"),
    "crop": (v1_transform, lambda: v1_transform(crop=256), "CenterCrop.size: (224, 224) -> (256, 256)"),
    "no ToTensor": (v1_transform, lambda: v1_transform(to=()), "ToTensor: ToTensor(repr='ToTensor()') -> (absent)"),
    "augmented": (
        v1_transform,
        lambda: v1_transform(v1.RandomHorizontalFlip()),
        "RandomHorizontalFlip: (absent) -> RandomHorizontalFlip(p=0.5)",
    ),
    "channels": (
        v1_transform,
        lambda: v1_transform(to=(v1.ToTensor(), v1.Lambda(swapped))),
        "Lambda: (absent) -> Lambda(lambd=tests.ecosystem.test_torchvision.swapped())",
    ),
    "v2, scale": (v2_transform, lambda: v2_transform(scale=False), "ToDtype.scale: True -> False"),
    "v2, dtype": (
        v2_transform,
        lambda: v2_transform(dtype=torch.float16),
        "ToDtype.dtype: 'torch.float32' -> 'torch.float16'",
    ),
    "v2, antialias": (v2_transform, lambda: v2_transform(antialias=False), "Resize.antialias: True -> False"),
    "v2, size": (v2_transform, lambda: v2_transform(size=232), "Resize.size: 256 -> 232"),
    "v2, no ToImage": (
        v2_transform,
        lambda: v2.Compose(v2_transform().transforms[1:]),
        "ToImage: ToImage() -> (absent)",
    ),
    "from v1, another mean": (
        lambda: v1_transform(by=HALF),
        v2_pil_transform,
        "Normalize.mean: (0.5, 0.5, 0.5) -> (0.485, 0.456, 0.406)",
    ),
    "from v1, not scaled": (
        v1_transform,
        lambda: v2_pil_transform(v2.ToImage(), v2.ToDtype(torch.float32)),
        "ToDtype.scale: True -> False",
    ),
    "from v1, tensors resized": (
        v1_transform,
        v2_transform,
        "Compose: reordered: Resize, CenterCrop, ToImage, ToDtype, Normalize -> "
        "ToImage, Resize, CenterCrop, ToDtype, Normalize",
    ),
    "other weights": (
        lambda: weights.IMAGENET1K_V1.transforms(),
        lambda: weights.IMAGENET1K_V2.transforms(),
        "Resize.size: 256 -> 232",
    ),
}
TIMM_CHANGED: dict[str, tuple[Make, Make, str]] = {
    "mean": (timm_transform, lambda: timm_transform(mean=HALF[0]), CHANGED["mean"][2]),
    "interpolation": (timm_transform, lambda: timm_transform(interpolation="bicubic"), CHANGED["interpolation"][2]),
    "crop_pct": (timm_transform, lambda: timm_transform(crop_pct=1.0), "Resize.size: 256 -> 224"),
    "crop_mode": (timm_transform, lambda: timm_transform(crop_mode="squash"), CHANGED["shape"][2]),
    "erased": (
        functools.partial(timm_transform, is_training=True, re_prob=0.1),
        functools.partial(timm_transform, is_training=True, re_prob=0.3),
        "RandomErasing.probability: 0.1 -> 0.3",
    ),
    "augmented": (
        functools.partial(timm_transform, is_training=True, no_aug=True),
        functools.partial(timm_transform, is_training=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=None),
        "RandomHorizontalFlip: (absent) -> RandomHorizontalFlip(p=0.5)",
    ),
}


@pytest.mark.parametrize("case", CHANGED.values(), ids=CHANGED)
def test_a_change_is_named(case: tuple[Make, Make, str]) -> None:
    before, after, words = case
    assert words in describe_differences((before, after))


@pytest.mark.parametrize("case", CHANGED.values(), ids=CHANGED)
def test_a_change_is_described_in_at_most_two_differences(case: tuple[Make, Make, str]) -> None:
    assert len(describe_differences(case[:2])) <= 2


@needs_timm
@pytest.mark.parametrize("case", TIMM_CHANGED.values(), ids=TIMM_CHANGED)
def test_a_change_of_a_timm_pipeline_is_named(case: tuple[Make, Make, str]) -> None:
    before, after, words = case
    assert words in describe_differences((before, after))


LOCKED = """
import os
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

def test_it(evalmode_lock):
    evalmode_lock.preprocessing(eval(os.environ["TRANSFORM"]), "eval")
"""
FIRST = "v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor(), v1.Normalize(*IMAGENET)])"
SECOND = FIRST.replace("v1.ToTensor()", "v2.ToImage(), v2.ToDtype(torch.float32, scale=True)").replace("v1", "v2")


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (FIRST, None),
        (SECOND, None),
        (SECOND.replace("256", "232"), "Resize.size: 256 -> 232"),
        (SECOND.replace("scale=True", "scale=False"), "ToDtype.scale: True -> False"),
    ],
)
def test_a_lock_of_v1_transforms_is_valid_for_v2(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, transform: str, expected: str | None
) -> None:
    suites.write(pytester, test_it=LOCKED)
    monkeypatch.setenv("TRANSFORM", FIRST)
    suites.run(pytester, "--evalmode-update-lock").assert_outcomes(passed=1)
    monkeypatch.setenv("TRANSFORM", transform)
    result = suites.run(pytester)
    if expected is None:
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"*HygieneViolation: preprocessing-changed: {expected}"])


# A cache that is computed again for images of another size: tests declare it as mutable.
CACHED = {"convit_tiny": "blocks.*.attn.rel_indices"}
MODELS = (
    "resnet18",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "efficientnet_b0",
    "swin_tiny_patch4_window7_224",
    *CACHED,
)


def make_model(name: str) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=10)
    return model


@needs_timm
@pytest.mark.parametrize("name", MODELS)
def test_a_timm_model_is_clean(name: str) -> None:
    model = make_model(name).eval()
    with watching(model, strict=True, mutable=CACHED.get(name, ())) as g, torch.inference_mode():
        for _ in range(2):
            model(torch.rand(1, 3, 224, 224))
    assert not rules(g)


@needs_timm
@pytest.mark.parametrize("name", CACHED)
def test_a_changed_cache_of_a_timm_model_is_reported(name: str) -> None:
    model = make_model(name).eval()
    with watching(model, strict=True) as first, torch.inference_mode():
        model(torch.rand(1, 3, 224, 224))
    with watching(model, strict=True) as second, torch.inference_mode():
        model(torch.rand(1, 3, 224, 224))
    assert (rules(first), rules(second)) == ({"buffer-mutated"}, set())


@needs_timm
@pytest.mark.parametrize("name", MODELS)
def test_a_timm_model_in_training_mode_is_reported(name: str) -> None:
    with watching() as g, torch.inference_mode():
        make_model(name).train()(torch.rand(2, 3, 224, 224))
    assert "train-mode" in rules(g)


@needs_timm
def test_timm_models_in_marked_tests(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        f"""
import timm

@pytest.fixture(scope="module", params={MODELS!r})
def model(request):
    return timm.create_model(request.param, num_classes=10).eval()

@pytest.mark.inference
def test_clean(model):
    with torch.inference_mode():
        model(torch.rand(1, 3, 224, 224))

@pytest.mark.inference
def test_forgotten(model):
    with torch.inference_mode():
        model.train()(torch.rand(2, 3, 224, 224))
    model.eval()
""",
    )
    outcomes = suites.outcomes(pytester)
    assert {nodeid.partition("::")[2].partition("[")[0]: outcome for nodeid, outcome in outcomes.items()} == {
        "test_clean": "passed",
        "test_forgotten": "failed",
    }
    assert len(outcomes) == 2 * len(MODELS)
