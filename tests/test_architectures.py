"""Real models of all kinds: correct inference is clean, also under strict, and a forgotten `eval()` is reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.architectures import ARCHITECTURES, Architecture
from tests.nets import rules, watching
from tests.repetitions import mark_repetitions

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the models

# These models break a rule in eval mode by design: their tests need an exemption.
BY_DESIGN = {
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
# These break a strict rule only, or a rule in the first forward only.
STRICT_BY_DESIGN = {
    "ibert": ("state-mutated", "in the first forward, it widens the ranges of its quantized activations"),
    "musicgen": ("random-forward", "its decoder draws from Python's generator for layer drop, in eval mode too"),
    "nllb-moe": ("attribute-mutated", "its routers store the capacity of each expert for the last batch"),
    "rwkv": ("attribute-mutated", "it rescales its layers in the first forward in eval mode, and stores that it did"),
}
KNOWN = BY_DESIGN.keys() | STRICT_BY_DESIGN.keys()
REPRESENTATIVES = [each for number, each in enumerate(ARCHITECTURES) if number % 5 == 0 or each.name in KNOWN]


@pytest.fixture(autouse=True)
def _no_logging() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield
    transformers.logging.set_verbosity(before)


def by_design(*tables: dict[str, tuple[str, str]], of: Architecture) -> set[str]:
    """Return the rules that the tables list for an architecture."""
    return {rule for table in tables if of.name in table for rule in table[of.name][0].split()}


@pytest.mark.parametrize("architecture", mark_repetitions(ARCHITECTURES, REPRESENTATIVES), ids=lambda each: each.name)
def test_eval_is_clean_and_training_mode_is_reported(architecture: Architecture) -> None:
    model, inputs = architecture.build().eval(), architecture.inputs()
    with watching(model, strict=True) as g:  # first: some models store attributes only in their first forward
        for _ in range(2):
            model(**inputs)
    assert rules(g) == by_design(BY_DESIGN, STRICT_BY_DESIGN, of=architecture)

    with watching() as g:
        for no_grad in (torch.no_grad, torch.inference_mode):
            with no_grad():
                model(**inputs)
    assert rules(g) == by_design(BY_DESIGN, of=architecture)
    assert [facts.type for facts in g.window.models] == [type(model).__name__]

    with watching() as g:
        model.train()(**inputs)
    assert "train-mode" in rules(g)


def test_exceptions_are_few_and_known_architectures() -> None:
    names = {architecture.name for architecture in ARCHITECTURES}
    assert names >= KNOWN
    assert len(names - KNOWN) > 250
