"""Real text, and tokenizers that are trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sklearn.datasets  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BatchEncoding, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"]


@cache
def sentences() -> list[str]:
    """Return sentences from the descriptions of scikit-learn's datasets: with names, numbers, capitals."""
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    text = " ".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.rst")))
    return [" ".join(each.split()) for each in text.split(". ") if 40 < len(each) < 240]


@cache
def train_tokenizer(lower: bool = True, size: int = 900) -> str:
    """Return a WordPiece tokenizer as JSON, trained on lowercased text or on text with capitals."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(sentences() + [line.lower() for line in sentences()], trainer)
    return str(tokenizer.to_str())


def tokenizer(
    *, vocabulary: bool = True, lower: bool = True, ends: tuple[str, str] | None = ("[CLS]", "[SEP]"), **arguments: Any
) -> PreTrainedTokenizerFast:
    """Return a BERT-like tokenizer; `vocabulary`: trained on lowercased text; `lower`: lowercases text."""
    backend = Tokenizer.from_str(train_tokenizer(vocabulary))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    if ends is not None:
        template = f"{ends[0]} $A {ends[1]}".strip()
        tokens = [(each, backend.token_to_id(each)) for each in ends if each]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", **arguments}
    make: Any = PreTrainedTokenizerFast
    fast: PreTrainedTokenizerFast = make(tokenizer_object=backend, **names)
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str] | None = None, length: int = 0) -> BatchEncoding:
    texts = sentences()[:12] if texts is None else list(texts)
    cut = {"truncation": True, "max_length": length} if length else {}
    encoded: BatchEncoding = tokenizer(texts, padding=True, return_tensors="pt", **cut)
    return encoded
