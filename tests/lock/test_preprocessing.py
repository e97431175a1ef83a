"""Descriptions of pipelines, read from their objects, and their differences."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_evalmode.lock.preprocessing import describe, find_differences
from tests.lock.texts import tokenizer

A: Any = pytest.importorskip("albumentations")
Hub: Any = pytest.importorskip("transformers")
Wav2Vec2FeatureExtractor: Any = Hub.Wav2Vec2FeatureExtractor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# Stand-ins for torchvision's transforms: plain objects in v1, modules in v2.
class InterpolationMode(Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Compose:
    def __init__(self, *transforms: object) -> None:
        self.transforms = list(transforms)


class ToTensor:
    def __call__(self, image: object) -> object:
        return image

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize(nn.Module):
    def __init__(self, mean: object, std: object, inplace: bool = False) -> None:
        super().__init__()
        self.mean, self.std, self.inplace = mean, std, inplace


class Resize(nn.Module):
    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        super().__init__()
        self.size, self.interpolation, self.antialias = size, interpolation, True


class ToImage(nn.Module):
    pass


class ToDtype(nn.Module):
    def __init__(self, dtype: torch.dtype, scale: bool) -> None:
        super().__init__()
        self.dtype, self.scale = dtype, scale


class RandomHorizontalFlip(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p


@dataclass
class Settings:
    size: int = 224
    mean: tuple[float, ...] = IMAGENET[0]


class Plain:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


def scaled(image: object, factor: float = 1.0) -> object:
    return image, factor


def closure(mean: float) -> Callable[[float], float]:
    return lambda x: x - mean


MEAN = 0.5


def uses_a_constant(x: float) -> float:
    return x - MEAN


def albumentations(size: int = 224, mean: object = IMAGENET[0], p: float = 0.5) -> Any:
    steps = [A.Resize(size, size), A.HorizontalFlip(p=p), A.Normalize(mean, IMAGENET[1]), A.ToTensorV2()]
    return A.Compose(steps)


def boxes(format: str) -> Any:
    return A.Compose([A.Resize(4, 4)], bbox_params=A.BboxParams(format))


def some_of(n: int) -> Any:
    return A.SomeOf([A.Blur(), A.GaussNoise()], n=n)


def unchanged(image: object, **_: object) -> object:
    return image


def negated(image: Any, **_: object) -> object:
    return -image


@cache
def vocabulary() -> str:
    """Return a vocabulary file, for tokenizers that read one."""
    path = Path(mkdtemp()) / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c"]), encoding="utf-8")
    return str(path)


def slow(**arguments: Any) -> object:
    return Hub.BertJapaneseTokenizer(vocabulary(), **arguments)


def slow_cased(do_lower_case: bool = False, **arguments: Any) -> Any:
    return Hub.ProphetNetTokenizer(vocabulary(), do_lower_case=do_lower_case, **arguments)


Pair = tuple[Callable[[], object], Callable[[], object], str]
CHANGES: dict[str, Pair] = {
    "torchvision": (
        lambda: Compose(Resize(224), ToTensor(), Normalize(*IMAGENET)),
        lambda: Compose(Resize(224), ToTensor(), Normalize(HALF[0], IMAGENET[1])),
        "Normalize.mean: (0.485, 0.456, 0.406) -> (0.5, 0.5, 0.5)",
    ),
    "interpolation": (
        lambda: Compose(Resize(224), ToTensor()),
        lambda: Compose(Resize(224, InterpolationMode.BICUBIC), ToTensor()),
        "Resize.interpolation: 'bilinear' -> 'bicubic'",
    ),
    "modules": (
        lambda: nn.Sequential(Resize(224), Normalize(*IMAGENET)),
        lambda: nn.Sequential(Resize(256), Normalize(*IMAGENET)),
        "Resize.size: 224 -> 256",
    ),
    "tensors": (
        lambda: Normalize(torch.tensor([0.5]), np.array([0.25])),
        lambda: Normalize(torch.tensor([0.5]), np.array([0.5])),
        "Normalize.std: 0.25 -> 0.5",
    ),
    "a removed step": (
        lambda: Compose(ToTensor(), Normalize(*HALF)),
        lambda: Compose(ToTensor()),
        "Normalize: Normalize(inplace=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) -> (absent)",
    ),
    "order": (
        lambda: Compose(Resize(224), ToTensor()),
        lambda: Compose(ToTensor(), Resize(224)),
        "Compose: reordered: Resize, ToTensor -> ToTensor, Resize",
    ),
    "timm": (
        lambda: {"input_size": (3, 224, 224), "mean": IMAGENET[0], "crop_pct": 0.875},
        lambda: {"input_size": (3, 224, 224), "mean": IMAGENET[0], "crop_pct": 0.9},
        "crop_pct: 0.875 -> 0.9",
    ),
    "partial": (
        lambda: functools.partial(scaled, factor=255),
        lambda: functools.partial(scaled, factor=1),
        "factor: 255 -> 1",
    ),
    "dataclass": (Settings, lambda: Settings(256), "Settings.size: 224 -> 256"),
    "slots": (lambda: Plain(1.0), lambda: Plain(2.0), "Plain.scale: 1.0 -> 2.0"),
    "closure": (lambda: closure(0.5), lambda: closure(0.4), "mean: 0.5 -> 0.4"),
    "feature extractor": (
        lambda: Wav2Vec2FeatureExtractor(sampling_rate=16000),
        lambda: Wav2Vec2FeatureExtractor(sampling_rate=8000),
        "Wav2Vec2FeatureExtractor.sampling_rate: 16000 -> 8000",
    ),
    "tokenizer": (
        tokenizer,
        lambda: tokenizer(padding_side="left"),
        "padding_side: 'right' -> 'left'",
    ),
    "casing": (tokenizer, lambda: tokenizer(lower=False), "normalizer.lowercase: True -> False"),
    "albumentations": (
        albumentations,
        lambda: albumentations(mean=HALF[0]),
        "Normalize.mean: (0.485, 0.456, 0.406) -> (0.5, 0.5, 0.5)",
    ),
    "a probability": (albumentations, lambda: albumentations(p=0.1), "HorizontalFlip.p: 0.5 -> 0.1"),
    "boxes": (lambda: boxes("coco"), lambda: boxes("yolo"), "BboxParams.format: 'coco' -> 'yolo'"),
    "number of steps": (lambda: some_of(1), lambda: some_of(2), "SomeOf.n: 1 -> 2"),
    "a function in a step": (
        lambda: A.Lambda(image=unchanged),
        lambda: A.Lambda(image=negated),
        "'tests.lock.test_preprocessing.unchanged' -> 'tests.lock.test_preprocessing.negated'",
    ),
    "image processor": (
        lambda: Hub.CLIPImageProcessorPil(),
        lambda: Hub.CLIPImageProcessorPil(do_center_crop=False),
        "CLIPImageProcessorPil.do_center_crop: True -> False",
    ),
    "another mean": (
        lambda: Hub.ViTImageProcessorPil(),
        lambda: Hub.ViTImageProcessorPil(image_mean=list(IMAGENET[0])),
        "image_mean: (0.5, 0.5, 0.5) -> (0.485, 0.456, 0.406)",
    ),
    "spectrogram": (
        lambda: Hub.ClapFeatureExtractor(),
        lambda: Hub.ClapFeatureExtractor(hop_length=240),
        "ClapFeatureExtractor.hop_length: 480 -> 240",
    ),
    "slow tokenizer": (slow, lambda: slow(split_special_tokens=True), "split_special_tokens: False -> True"),
    "slow casing": (slow_cased, lambda: slow_cased(do_lower_case=True), "do_lower_case: False -> True"),
    "slow accents": (slow_cased, lambda: slow_cased(strip_accents=True), "strip_accents: (absent) -> True"),
    "maximum length": (
        lambda: Hub.ByT5Tokenizer(model_max_length=512),
        lambda: Hub.ByT5Tokenizer(model_max_length=128),
        "ByT5Tokenizer.model_max_length: 512 -> 128",
    ),
    "a C function": (lambda: np.negative, lambda: np.abs, "'numpy.negative' -> 'numpy.absolute'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_reported_by_its_field(name: str) -> None:
    old, new, words = CHANGES[name]
    differences = find_differences(*(json.loads(json.dumps(describe(make()))) for make in (old, new)))
    assert len(differences) == 1, differences
    assert differences[0].endswith(words)


@pytest.mark.parametrize("name", CHANGES)
def test_two_equal_pipelines_have_the_same_description(name: str) -> None:
    for make in CHANGES[name][:2]:
        assert find_differences(describe(make()), describe(make())) == []
        assert "0x" not in json.dumps(describe(make()))


def test_a_call_does_not_change_the_description_of_a_pipeline() -> None:
    pipeline = albumentations()
    before = describe(pipeline)
    pipeline(image=np.zeros((30, 40, 3), np.uint8))
    assert find_differences(before, describe(pipeline)) == []


def test_a_global_constant_of_a_function_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(uses_a_constant)
    monkeypatch.setitem(globals(), "MEAN", 0.4)
    assert find_differences(before, describe(uses_a_constant)) == ["MEAN: 0.5 -> 0.4"]


def test_code_is_only_compared_within_one_version_of_python() -> None:
    old = describe(lambda x: x + 1)
    new = describe(lambda x: x - 1)
    assert len(find_differences(old, new)) == 1
    old["code"] = {"3.10": "another"}
    assert find_differences(old, new) == []


def test_a_call_does_not_change_the_description_of_a_tokenizer() -> None:
    fast = tokenizer()
    before = describe(fast)
    fast(["a text"], padding="max_length", truncation=True, max_length=16)
    assert find_differences(before, describe(fast)) == []


@pytest.mark.parametrize("make", [slow_cased, lambda: Hub.ByT5Tokenizer(), lambda: Hub.CanineTokenizer()])
def test_a_tokenizer_that_is_saved_and_loaded_has_the_same_description(make: Callable[[], Any], tmp_path: Path) -> None:
    slow = make()
    slow.save_pretrained(tmp_path)
    assert find_differences(describe(slow), describe(type(slow).from_pretrained(tmp_path))) == []


def test_a_method_of_a_c_type_is_described() -> None:
    one, other = (describe(np.array([each]).take) for each in (1, 2))
    assert find_differences(one, one) == []
    assert find_differences(one, other) == ["of: 1 -> 2"]


def test_an_object_without_readable_parameters_is_refused() -> None:
    with pytest.raises(TypeError, match="has no readable parameters: add a __repr__ that shows them, or pass them"):
        describe(object())


def test_a_pipeline_that_contains_itself_is_described() -> None:
    outer = Compose(ToTensor())
    outer.transforms.append(outer)
    assert json.dumps(describe(outer))
