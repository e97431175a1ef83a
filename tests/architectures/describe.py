"""Helpers that describe an architecture: a tiny, randomly initialized model and the inputs of one forward."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

Inputs = dict[str, Any]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The name of an architecture, a function that builds a tiny model, and one that returns its keyword arguments."""

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], Inputs]


def from_path(name: str, path: str, inputs: Callable[[], Inputs], /, **settings: Any) -> Architecture:
    """Return an architecture built by the class or function at ``package.module:name``."""

    def build() -> torch.nn.Module:
        pytest.importorskip(path.partition(":")[0])
        return _seeded(partial(pkgutil.resolve_name(path), **settings))

    return Architecture(name, build, inputs)


def hf(name: str, family: str, inputs: Callable[[], Inputs], /, head: str = "Model", **settings: Any) -> Architecture:
    """Return ``transformers.<family><head>`` with the configuration ``transformers.<family>Config(**settings)``."""

    def build() -> torch.nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{family}Config")(**settings)
        return _seeded(partial(getattr(transformers, f"{family}{head}"), config))

    return Architecture(name, build, inputs)


def _seeded(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def ids(length: int) -> torch.Tensor:
    """Return the token ids of two sequences."""
    # Ids below 10 are not used: in some configurations they are special tokens.
    return torch.randint(10, 90, (2, length), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> torch.Tensor:
    """Return random numbers, the same in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def text(length: int = 16) -> Inputs:
    """Return two sentences."""
    return {"input_ids": ids(length)}


def text_pair(length: int = 16) -> Inputs:
    """Return two sentences for an encoder, and the ids that its decoder has generated so far."""
    return {**text(length), **target_ids()}


def target_ids() -> Inputs:
    """Return the ids that a decoder has generated so far."""
    return {"decoder_input_ids": ids(8)}


def boxes() -> Inputs:
    """Return a bounding box for each token of two sentences."""
    return {"bbox": torch.tensor([1, 2, 30, 40]).expand(2, 16, 4)}


def image(size: int = 32) -> Inputs:
    """Return two square images."""
    return {"pixel_values": noise(2, 3, size, size)}


def video() -> Inputs:
    """Return two clips of two frames each."""
    return {"pixel_values": noise(2, 2, 3, 32, 32)}


def audio() -> Inputs:
    """Return two waveforms."""
    return {"input_values": noise(2, 1200)}


def mono() -> Inputs:
    """Return two waveforms with a channel dimension."""
    return {"input_values": noise(2, 1, 1200)}


def series() -> Inputs:
    """Return two windows of a time series: seven steps of lags, eight of context and four to predict."""
    return {
        "past_values": noise(2, 15),
        "past_time_features": noise(2, 15, 1),
        "past_observed_mask": torch.ones(2, 15),
        "future_values": noise(2, 4),
        "future_time_features": noise(2, 4, 1),
    }


def padded_series() -> Inputs:
    """Return two time series with their padding and frequency."""
    return {
        "past_values": noise(2, 64),
        "past_values_padding": torch.zeros(2, 64, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    }


def trajectory() -> Inputs:
    """Return two trajectories of four steps."""
    return {
        "states": noise(2, 4, 5),
        "actions": noise(2, 4, 3),
        "rewards": noise(2, 4, 1),
        "returns_to_go": noise(2, 4, 1),
        "timesteps": torch.arange(4).expand(2, 4),
        "attention_mask": torch.ones(2, 4),
    }


def floats(**shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """Return a function that makes random float inputs of these shapes."""
    return lambda: {name: noise(*shape) for name, shape in shapes.items()}


def integers(below: int, **shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """Return a function that makes random integer inputs of these shapes."""
    return lambda: {
        name: torch.randint(below, shape, generator=torch.Generator().manual_seed(0)) for name, shape in shapes.items()
    }


def fixed(**values: Any) -> Callable[[], Inputs]:
    """Return a function that returns these inputs."""
    return lambda: dict(values)


def merge(*parts: Callable[[], Inputs]) -> Callable[[], Inputs]:
    """Return a function that returns the inputs of several functions in one dict."""
    return lambda: {name: value for part in parts for name, value in part().items()}


SIZE: Settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
BERT: Settings = {**SIZE, "vocab_size": 99, "max_position_embeddings": 64}
SPECIAL: Settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA: Settings = {**BERT, **SPECIAL, "num_key_value_heads": 2}
MAMBA: Settings = {**SPECIAL, "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
T5: Settings = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
BLOCKS: Settings = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
}
VIT: Settings = {**SIZE, "image_size": 32, "patch_size": 8}
RESNET: Settings = {"embedding_size": 16, "hidden_sizes": (16, 32), "depths": (1, 2)}
PYRAMID: Settings = {"hidden_sizes": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 2, 4)}
WAV2VEC2: Settings = {
    **SIZE,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
TOWERS: Settings = {"text_config": {**BERT, **SPECIAL}, "vision_config": VIT, "projection_dim": 16}
