"""The vision transformers of vit-pytorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand

REQUIREMENTS = ("torch==2.14.1", "torchvision==0.29.1", "vit-pytorch==1.26.14")

SIZES = {"image_size": 64, "patch_size": 16, "num_classes": 5, "dim": 32}
BLOCKS = {"depth": 2, "heads": 2, "mlp_dim": 32}
DROPS = {"dropout": 0.1, "emb_dropout": 0.1}
STAGES = {"num_classes": 5, "dim": 16, "mlp_mult": 2}

MODELS: dict[str, dict[str, Any]] = {
    "vit.ViT": SIZES | BLOCKS | DROPS,
    "vit-mean.ViT": SIZES | BLOCKS | {"pool": "mean"},
    "simple_vit.SimpleViT": SIZES | BLOCKS,
    "simple_vit_with_register_tokens.SimpleViT": SIZES | BLOCKS,
    "simple_vit_with_patch_dropout.SimpleViT": SIZES | BLOCKS | {"patch_dropout": 0.25},
    "simple_vit_with_qk_norm.SimpleViT": SIZES | BLOCKS,
    "simple_vit_with_fft.SimpleViT": SIZES | BLOCKS | {"freq_patch_size": 8},
    "vit_with_patch_dropout.ViT": SIZES | BLOCKS | DROPS | {"patch_dropout": 0.25},
    "vit_for_small_dataset.ViT": SIZES | BLOCKS | DROPS,
    "deepvit.DeepViT": SIZES | BLOCKS | DROPS,
    "cait.CaiT": SIZES | BLOCKS | DROPS | {"cls_depth": 1, "layer_dropout": 0.1},
    "distill.DistillableViT": SIZES | BLOCKS | DROPS,
    "t2t.T2TViT": {"image_size": 64, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 5},
    "cct.CCT": {"img_size": (64, 64), "embedding_dim": 32, "n_conv_layers": 1, "num_layers": 2, "num_heads": 2}
    | {"num_classes": 5, "mlp_ratio": 1.0, "positional_embedding": "learnable"},
    "cross_vit.CrossViT": {"image_size": 64, "num_classes": 5, "sm_dim": 16, "lg_dim": 32, "depth": 1}
    | {"sm_patch_size": 16, "lg_patch_size": 32},
    "pit.PiT": SIZES | {"dim": 32, "depth": (1, 1), "heads": 2, "mlp_dim": 32} | DROPS,
    "levit.LeViT": {"image_size": 64, "num_classes": 5, "dim": (32, 48), "depth": 1, "heads": (2, 3)}
    | {"mlp_mult": 2, "stages": 2, "dropout": 0.1},
    "cvt.CvT": {"num_classes": 5, "dropout": 0.1},
    "regionvit.RegionViT": {"dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 5},
    "scalable_vit.ScalableViT": {"num_classes": 5, "dim": 16, "heads": (2, 2, 2, 2), "depth": (1, 1, 1, 1)}
    | {"ssa_dim_key": (8, 8, 8, 8), "reduction_factor": (2, 2, 1, 1), "window_size": (16, 8, None, None)},
    "max_vit.MaxViT": {"num_classes": 5, "dim_conv_stem": 8, "dim": 16, "dim_head": 8, "depth": (1, 1)}
    | {"window_size": 4, "dropout": 0.1},
    "nest.NesT": {"image_size": 64, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 2}
    | {"block_repeats": (1, 1), "num_classes": 5},
    "mobile_vit.MobileViT": {"image_size": (64, 64), "dims": [16, 16, 16], "num_classes": 5}
    | {"channels": [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16], "patch_size": (2, 2)},
    "xcit.XCiT": SIZES | BLOCKS | DROPS | {"cls_depth": 1},
    "rvt.RvT": SIZES | BLOCKS | DROPS,
    "learnable_memory_vit.ViT": SIZES | BLOCKS | DROPS,
    "parallel_vit.ViT": SIZES | BLOCKS | DROPS | {"num_parallel_branches": 2},
    "ats_vit.ViT": SIZES | BLOCKS | DROPS | {"max_tokens_per_depth": (8, 4)},
    "normalized_vit.nViT": SIZES | BLOCKS,
}


def architectures() -> Iterator[Architecture]:
    """Yield each model on a batch of images."""
    for name, settings in MODELS.items():
        yield Architecture(name, partial(_build, name, settings), _images, _call)


def _build(name: str, settings: dict[str, Any]) -> Any:
    module, _, model = name.partition(".")
    return getattr(import_module(f"vit_pytorch.{module.partition('-')[0]}"), model)(**settings)


def _images() -> dict[str, Any]:
    return {"images": rand(2, 3, 64, 64)}


def _call(model: Any, images: Any) -> object:
    return model(images)
