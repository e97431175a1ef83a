"""Real models of all kinds: correct inference is clean, and a forgotten `eval()` is reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.architectures import ARCHITECTURES, Architecture
from tests.nets import rules, watching

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the models

# These models break a rule in eval mode by design: their tests need an exemption.
BY_DESIGN = {
    "ibert": ("state-mutated", "its quantized activations keep their ranges up to date in persistent buffers"),
    "informer": ("random-forward", "ProbSparse attention samples the keys"),
    "patchtst-pretraining": ("random-forward", "masks patches"),
    "pmlp": ("batch-stats", "its norm keeps no running statistics"),
    "reformer": ("random-forward", "LSH attention draws random rotations"),
    "speecht5": ("random-forward", "the prenet of the decoder always applies dropout"),
    "univnet": ("random-forward", "a vocoder that starts from noise"),
    "vilt": ("random-forward", "samples patches"),
    "vit_mae": ("random-forward", "masks patches"),
    "vits": ("random-forward", "samples durations and latents"),
}


@pytest.fixture(autouse=True)
def _no_logging() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_eval_is_clean_and_training_mode_is_reported(architecture: Architecture) -> None:
    model, inputs = architecture.build(), architecture.inputs()
    with watching() as g:
        for no_grad in (torch.no_grad, torch.inference_mode):
            with no_grad():
                model.eval()(**inputs)
    broken = BY_DESIGN.get(architecture.name)
    assert rules(g) == ({broken[0]} if broken else set())
    assert [facts.type for facts in g.window.models] == [type(model).__name__]

    with watching() as g:
        model.train()(**inputs)
    assert "train-mode" in rules(g)


def test_all_exceptions_are_known_architectures() -> None:
    assert {architecture.name for architecture in ARCHITECTURES} >= BY_DESIGN.keys()
