"""A tokenizer and texts with labels that fit on a page, and a transformer of two blocks."""

import json

import pytest

WORDS = ["good", "bad", "film", "plot", "a", "the", "dull", "fine", "very", "not"]
TINY = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def save_tokenizer(folder, words=WORDS, pad="[PAD]"):
    """Write a tokenizer of words; returns its folder."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: k for k, word in enumerate([*special, *words])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="[UNK]", pad_token=pad, cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
    )
    fast.save_pretrained(folder)
    return folder


def save_texts(folder, rows=32, name="train.jsonl"):
    """Write texts of one to eight words, whose label says whether they begin with `good`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(rows):
        words = [WORDS[k % 2], *(WORDS[(k * 7 + j) % 10] for j in range(k % 8))]
        lines.append({"text": " ".join(words), "label": ["yes", "no"][k % 2]})
    (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder
