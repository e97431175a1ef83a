"""Real models under strict: clean, but for what is true of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.architectures import ARCHITECTURES, Architecture
from tests.nets import rules, watching

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # the models' own

# What these break they break by design: who tests them under strict has to say so.
TRUE: dict[str, dict[str, str]] = {
    "funnel": {"attribute-mutated": "the pooling of its attention keeps its progress and masks on the module"},
    "ibert": {
        "state-mutated": "its quantised activations keep their ranges up to date in persistent buffers",
        "attribute-mutated": "its layer norms keep the root of their dimension from the first forward on",
    },
    "informer": {"random-forward": "ProbSparse attention samples the keys"},
    "mimi": {"attribute-mutated": "its codebooks keep the embeddings that they compute in the first forward"},
    "musicgen": {"random-forward": "its decoder draws for layer drop from Python's generator in eval mode too"},
    "nllb-moe": {"attribute-mutated": "its routers keep the capacity that the last batch gave each expert"},
    "patchtst-pretraining": {"random-forward": "masks patches"},
    "pmlp": {"batch-stats": "its norm keeps no running statistics"},
    "qwen2_vl": {"attribute-mutated": "the offsets of the positions are kept on the module for the next forward"},
    "recurrent_gemma": {"attribute-mutated": "the recurrent and convolutional states are kept on the module"},
    "reformer": {"random-forward": "LSH attention draws random rotations"},
    "rwkv": {"attribute-mutated": "rescales its layers in the first forward in eval mode, and notes that it has"},
    "speecht5": {"random-forward": "the prenet of the decoder drops out always"},
    "univnet": {"random-forward": "a vocoder that starts from noise"},
    "vilt": {"random-forward": "samples patches"},
    "vit_mae": {"random-forward": "masks patches"},
    "vits": {"random-forward": "samples durations and latents"},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_strict(architecture: Architecture) -> None:
    model, inputs = architecture.build().eval(), architecture.inputs()
    with watching(model, strict=True) as g:
        for _ in range(2):
            model(**inputs)
    assert rules(g) == set(TRUE.get(architecture.name, ()))


def test_the_exceptions_are_few_and_among_them() -> None:
    names = {architecture.name for architecture in ARCHITECTURES}
    assert names >= TRUE.keys()
    assert len(names - TRUE.keys()) > 250
