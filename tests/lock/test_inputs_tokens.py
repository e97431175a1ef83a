"""Diagnoses of faults in the tokenization of real text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_evalmode.lock.arrays.batch_arrays import arrays
from pytest_evalmode.lock.causes import diagnose
from tests.lock.texts import encode, sentences, tokenizer

CASED: dict[str, Any] = {"vocabulary": False, "lower": False}

# Arguments of the tokenizer, arguments of the call, kinds for the ids, kinds for the attention mask.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str], set[str]]] = {
    "padding side": ({"padding_side": "left"}, {}, {"padding"}, {"padding"}),
    "padding id": ({"pad_token": "[UNK]"}, {}, {"padding"}, set()),
    "no special tokens": ({"ends": None}, {}, {"special tokens"}, set()),
    "no first token": ({"ends": ("", "[SEP]")}, {}, {"special tokens"}, set()),
    "other special tokens": ({"ends": ("<s>", "</s>")}, {}, {"special tokens"}, set()),
    "other first token": ({"ends": ("<s>", "[SEP]")}, {}, {"special tokens"}, set()),
    "truncation": ({}, {"length": 24}, {"truncation"}, set()),
    "truncation side": ({"truncation_side": "left"}, {"length": 24}, {"truncation"}, set()),
    "reversed": ({}, {"texts": sentences()[:12][::-1]}, {"reordered"}, {"reordered"}),
    "dropped": ({}, {"texts": sentences()[1:12]}, {"dropped"}, {"dropped"}),
    "side, no special tokens": (
        {"padding_side": "left", "ends": None},
        {},
        {"padding", "special tokens"},
        set(),
    ),
    "truncation, no special tokens": (
        {"ends": None},
        {"length": 24},
        {"truncation", "special tokens"},
        set(),
    ),
    "truncation, side": (
        {"padding_side": "left"},
        {"length": 24},
        {"truncation", "padding"},
        set(),
    ),
    "reversed, side": (
        {"padding_side": "left"},
        {"texts": sentences()[:12][::-1]},
        {"reordered", "padding"},
        set(),
    ),
}


@pytest.mark.parametrize("cased", [False, True], ids=["uncased", "cased"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gets_its_diagnosis(fault: str, cased: bool) -> None:
    arguments, call, ids, mask = FAULTS[fault]
    vocabulary = CASED if cased else {}
    was, now = encode(tokenizer(**vocabulary)), encode(tokenizer(**vocabulary, **arguments), **call)
    diagnosis = diagnose(arrays(was)["input_ids"], arrays(now)["input_ids"])
    assert diagnosis is not None
    assert set(diagnosis.kinds) == ids, diagnosis.headline
    diagnosis = diagnose(arrays(was)["attention_mask"], arrays(now)["attention_mask"])
    assert (set(diagnosis.kinds) if diagnosis else set()) == mask


def test_capitals_that_the_vocabulary_lacks_are_unknown_tokens() -> None:
    was, now = encode(tokenizer()), encode(tokenizer(lower=False))
    diagnosis = diagnose(arrays(was)["input_ids"], arrays(now)["input_ids"])
    assert diagnosis is not None
    assert diagnosis.kinds == ("unknown tokens",)


def test_a_prompt_before_every_text_is_recognized() -> None:
    was, now = encode(tokenizer()), encode(tokenizer(), [f"query: {line}" for line in sentences()[:12]])
    diagnosis = diagnose(arrays(was)["input_ids"], arrays(now)["input_ids"])
    assert diagnosis is not None
    assert diagnosis.kinds == ("prompt",)
    assert "4 more tokens at the start of every text" in diagnosis.headline


def test_a_doubled_special_token_is_recognized() -> None:
    was = arrays(encode(tokenizer()))["input_ids"]
    diagnosis = diagnose(was, np.c_[was[:, :1], was])
    assert diagnosis is not None
    assert diagnosis.headline == f"tokens were given with id {was[0, 0]} added at the start"


def test_an_inverted_mask_is_recognized() -> None:
    was = arrays(encode(tokenizer()))["attention_mask"]
    diagnosis = diagnose(was, 1 - was)
    assert diagnosis is not None
    assert diagnosis.kinds == ("inverted",)


def test_other_texts_are_not_recognized() -> None:
    was, now = encode(tokenizer()), encode(tokenizer(), sentences()[40:52])
    diagnosis = diagnose(arrays(was)["input_ids"], arrays(now)["input_ids"])
    assert diagnosis is not None
    assert diagnosis.kinds == ()


def test_one_changed_token_is_not_recognized() -> None:
    was = arrays(encode(tokenizer()))["input_ids"]
    now = was.copy()
    now[2, 5] += 1
    diagnosis = diagnose(was, now)
    assert diagnosis is not None
    assert diagnosis.kinds == ()
    assert diagnosis.details["where"] == (2, 5)


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
def test_a_change_of_texts_is_recognized(change: Any, kind: str | None) -> None:
    diagnosis = diagnose(np.array(sentences()[:5]), np.array([change(line) for line in sentences()[:5]]))
    assert diagnosis is not None
    assert diagnosis.kinds == ((kind,) if kind else ())


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ("naïve café", "naïve café".encode().decode("latin-1"), "decoded as Latin-1 instead of UTF-8"),
        ("naïve café".encode().decode("latin-1"), "naïve café", "no longer decoded as Latin-1"),
        ("a <b> & c", "a &lt;b&gt; &amp; c", "escaped as HTML"),
    ],
)
def test_a_wrong_codec_is_recognized(was: str, now: str, words: str) -> None:
    diagnosis = diagnose(np.array([was, "plain"]), np.array([now, "plain"]))
    assert diagnosis is not None
    assert words in diagnosis.headline


def test_unrecognized_texts_are_shown_where_they_differ() -> None:
    diagnosis = diagnose(np.array(["the same beginning, one end"]), np.array(["the same beginning, another end"]))
    assert diagnosis is not None
    assert diagnosis.headline.endswith("first at (0,): 'eginning, another end', not 'eginning, one end'")


@pytest.mark.parametrize("at", [slice(3, 3), slice(3, 4)], ids=["inserted", "replaced"])
def test_inserted_tokens_are_not_named_unknown_words(at: slice) -> None:
    was = arrays(encode(tokenizer()))["input_ids"]
    rows = [list(map(int, row)) for row in was]
    for i in (1, 4, 6):
        rows[i][at] = [5000]
    rows = [row[: was.shape[1]] + [0] * (was.shape[1] - len(row)) for row in rows]
    diagnosis = diagnose(was, np.array(rows))
    assert diagnosis is not None
    assert diagnosis.kinds == (() if at.start == at.stop else ("unknown tokens",))


def test_texts_in_another_shape_are_not_named_lowercased() -> None:
    was = np.array(["one", "two", "three", "four"])
    diagnosis = diagnose(was, was.reshape(2, 2))
    assert diagnosis is not None
    assert diagnosis.headline == "texts differ, cause not recognized: shape (2, 2), not (4,)"
