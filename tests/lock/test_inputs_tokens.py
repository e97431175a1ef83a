"""Real text, tokenised otherwise: each fault is called by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_evalmode.lock.inputs import diagnose, first_samples, vocabulary_of
from tests.lock.texts import encode, sentences, tokenizer

CASED: dict[str, Any] = {"vocabulary": False, "lower": False}

# The tokenizer's arguments, those of the call, and the kinds of ids and of the mask.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str], set[str]]] = {
    "padding side": ({"padding_side": "left"}, {}, {"padding"}, {"padding"}),
    "padding id": ({"pad_token": "[UNK]"}, {}, {"padding"}, set()),
    "no special tokens": ({"ends": None}, {}, {"special tokens"}, {"length"}),
    "no first token": ({"ends": ("", "[SEP]")}, {}, {"special tokens"}, {"length"}),
    "other special tokens": ({"ends": ("<s>", "</s>")}, {}, {"special tokens"}, set()),
    "other first token": ({"ends": ("<s>", "[SEP]")}, {}, {"special tokens"}, set()),
    "truncation": ({}, {"length": 24}, {"truncation"}, {"truncation"}),
    "truncation side": ({"truncation_side": "left"}, {"length": 24}, {"truncation"}, {"truncation"}),
    "reversed": ({}, {"texts": sentences()[:12][::-1]}, {"reordered"}, {"reordered"}),
    "dropped": ({}, {"texts": sentences()[1:12]}, {"dropped"}, {"dropped"}),
    "side, no special tokens": (
        {"padding_side": "left", "ends": None},
        {},
        {"padding", "special tokens"},
        {"padding", "length"},
    ),
    "truncation, no special tokens": (
        {"ends": None},
        {"length": 24},
        {"truncation", "special tokens"},
        {"truncation", "length"},
    ),
    "truncation, side": (
        {"padding_side": "left"},
        {"length": 24},
        {"truncation", "padding"},
        {"truncation", "padding"},
    ),
    "reversed, side": (
        {"padding_side": "left"},
        {"texts": sentences()[:12][::-1]},
        {"reordered", "padding"},
        {"reordered", "padding"},
    ),
}


@pytest.mark.parametrize("read", [True, False], ids=["words", "ids alone"])
@pytest.mark.parametrize("cased", [False, True], ids=["uncased", "cased"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_called_by_its_name(fault: str, cased: bool, read: bool) -> None:
    arguments, call, ids, mask = FAULTS[fault]
    vocabulary = CASED if cased else {}
    was, now = encode(tokenizer(**vocabulary)), encode(tokenizer(**vocabulary, **arguments), **call)
    told = (vocabulary_of(was), vocabulary_of(now)) if read else None
    found = diagnose(first_samples(was)["input_ids"], first_samples(now)["input_ids"], vocabularies=told)
    assert found is not None
    assert set(found.kinds) == ids, found.headline
    found = diagnose(first_samples(was)["attention_mask"], first_samples(now)["attention_mask"])
    assert (set(found.kinds) if found else set()) == mask


def test_casing_is_told_where_the_words_are_known() -> None:
    cased, lower = (encode(tokenizer(vocabulary=False, lower=lower)) for lower in (False, True))
    for was, now, headline in (
        (cased, lower, "tokens were lower-cased"),
        (lower, cased, "tokens were not lower-cased"),
    ):
        old, new = first_samples(was)["input_ids"], first_samples(now)["input_ids"]
        found = diagnose(old, new, vocabularies=(vocabulary_of(was), vocabulary_of(now)))
        assert found is not None
        assert found.headline == headline
        found = diagnose(old, new)
        assert found is not None
        assert found.kinds == ("spelling",)
        assert "another casing or normalisation" in found.headline


def test_casing_and_what_goes_with_it() -> None:
    was = encode(tokenizer(**CASED))
    now = encode(tokenizer(vocabulary=False, lower=True, ends=None, padding_side="left"), length=24)
    found = diagnose(
        first_samples(was)["input_ids"],
        first_samples(now)["input_ids"],
        vocabularies=(vocabulary_of(was), vocabulary_of(now)),
    )
    assert found is not None
    assert set(found.kinds) == {"special tokens", "casing", "truncation", "padding"}


def test_capitals_that_a_vocabulary_does_not_know() -> None:
    was, now = encode(tokenizer()), encode(tokenizer(lower=False))
    found = diagnose(first_samples(was)["input_ids"], first_samples(now)["input_ids"])
    assert found is not None
    assert found.kinds == ("unknown tokens",)


def test_another_vocabulary() -> None:
    was = first_samples(encode(tokenizer()))["input_ids"]
    names = np.r_[0, 1 + np.random.default_rng(0).permutation(was.max())]
    found = diagnose(was, names[was])
    assert found is not None
    assert found.kinds == ("vocabulary",)


def test_a_prompt_before_every_text() -> None:
    was, now = encode(tokenizer()), encode(tokenizer(), [f"query: {line}" for line in sentences()[:12]])
    found = diagnose(first_samples(was)["input_ids"], first_samples(now)["input_ids"])
    assert found is not None
    assert found.kinds == ("prompt",)
    assert "4 more tokens at the start of every text" in found.headline


def test_special_tokens_given_twice() -> None:
    was = first_samples(encode(tokenizer()))["input_ids"]
    found = diagnose(was, np.c_[was[:, :1], was])
    assert found is not None
    assert found.headline == f"tokens were begun with id {was[0, 0]} more"


def test_a_mask_the_other_way_round() -> None:
    was = first_samples(encode(tokenizer()))["attention_mask"]
    found = diagnose(was, 1 - was)
    assert found is not None
    assert found.kinds == ("inverted",)


def test_other_texts_are_not_explained() -> None:
    was, now = encode(tokenizer()), encode(tokenizer(), sentences()[40:52])
    for told in (None, (vocabulary_of(was), vocabulary_of(now))):
        found = diagnose(first_samples(was)["input_ids"], first_samples(now)["input_ids"], vocabularies=told)
        assert found is not None
        assert found.kinds == ()


def test_one_token_off_is_not_explained() -> None:
    was = first_samples(encode(tokenizer()))["input_ids"]
    now = was.copy()
    now[2, 5] += 1
    found = diagnose(was, now)
    assert found is not None
    assert found.kinds == ()
    assert found.details["where"] == (2, 5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (str.lower, "casing"),
        (lambda text: text.replace(" ", "  "), "white space"),
        (lambda text: text[:30], "truncation"),
        (lambda text: f"query: {text}", "prompt"),
        (lambda text: f"{text}</s>", "prompt"),
        (lambda text: "another text", None),
        (lambda text: text[::-1], None),
    ],
)
def test_texts(change: Any, kind: str | None) -> None:
    found = diagnose(np.array(sentences()[:5]), np.array([change(line) for line in sentences()[:5]]))
    assert found is not None
    assert found.kinds == ((kind,) if kind else ())


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ("naïve café", "naïve café".encode().decode("latin-1"), "decoded as Latin-1, and are UTF-8"),
        ("naïve café".encode().decode("latin-1"), "naïve café", "no longer decoded as Latin-1"),
        ("a <b> & c", "a &lt;b&gt; &amp; c", "escaped as HTML"),
    ],
)
def test_texts_through_a_codec(was: str, now: str, words: str) -> None:
    found = diagnose(np.array([was, "plain"]), np.array([now, "plain"]))
    assert found is not None
    assert words in found.headline


def test_texts_that_nothing_explains_are_shown_where_they_differ() -> None:
    found = diagnose(np.array(["the same beginning, one end"]), np.array(["the same beginning, another end"]))
    assert found is not None
    assert found.headline.endswith("first at (0,): 'eginning, another end', not 'eginning, one end'")
