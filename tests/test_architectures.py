"""Real models, of every kind: inference done right raises no alarm, and a forgotten `eval()` one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.architectures import ARCHITECTURES, Architecture
from tests.nets import rules, watching

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # the models' own

# What these break in eval mode they break by design, and who tests them has to say so.
BY_DESIGN = {
    "ibert": ("state-mutated", "its quantised activations keep their ranges up to date in persistent buffers"),
    "informer": ("random-forward", "ProbSparse attention samples the keys"),
    "patchtst-pretraining": ("random-forward", "masks patches"),
    "pmlp": ("batch-stats", "its norm keeps no running statistics"),
    "reformer": ("random-forward", "LSH attention draws random rotations"),
    "speecht5": ("random-forward", "the prenet of the decoder drops out always"),
    "univnet": ("random-forward", "a vocoder that starts from noise"),
    "vilt": ("random-forward", "samples patches"),
    "vit_mae": ("random-forward", "masks patches"),
    "vits": ("random-forward", "samples durations and latents"),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_right_and_wrong(architecture: Architecture) -> None:
    model, inputs = architecture.build(), architecture.inputs()
    with watching() as g:
        for quiet in (torch.no_grad, torch.inference_mode):
            with quiet():
                model.eval()(**inputs)
    broken = BY_DESIGN.get(architecture.name)
    assert rules(g) == ({broken[0]} if broken else set())
    assert [facts.type for facts in g.models] == [type(model).__name__]

    with watching() as g:
        model.train()(**inputs)
    assert "train-mode" in rules(g)


def test_the_exceptions_are_among_them() -> None:
    assert {architecture.name for architecture in ARCHITECTURES} >= BY_DESIGN.keys()
