"""A small causal language model on text that Python ships, by characters."""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from fsl.data import TaskData, TensorExamples

LENGTH = 24
TEXT = topics["numbers"] + topics["exprlists"] + topics["slicings"]
ALPHABET = sorted(set(TEXT))
CUTS = ("first", "second")


def text_task(text: str = TEXT, length: int = LENGTH, samples: int = 40, tests: int = 16) -> TaskData:
    """Windows of text as ids (N, T); targets are the same ids, which the loss shifts."""
    ids = torch.tensor([ALPHABET.index(letter) for letter in text if letter in ALPHABET])
    rows = ids[: len(ids) // length * length].view(-1, length)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))][: samples + tests]
    examples, every = TensorExamples(rows, rows), torch.arange(len(rows))
    return TaskData("text", examples.subset(every[:-tests]), examples.subset(every[-tests:]), None)


def next_letter(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of each letter's prediction from those before it; outputs (B, T, V), targets (B, T)."""
    return nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


class Block(nn.Module):
    """Attention to letters before, and a feed-forward part."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down, self.drop = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        x = x + self.drop(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norm2(x)))))


class Decoder(nn.Module):
    """Front: embedding and the first block; back: the second; tail: the third, and the head."""

    def __init__(self, tied: bool = False, dropout: float = 0.0, width: int = 16):
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        self.first, self.second, self.third = (Block(width, dropout) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        if tied:
            self.head.weight = self.letters.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.letters(x) + self.places)
        return self.head(self.norm(self.third(self.second(h))))


def decoder(tied: bool = False, dropout: float = 0.0) -> Decoder:
    """A decoder with weights that are always the same."""
    torch.manual_seed(0)
    return Decoder(tied, dropout)
