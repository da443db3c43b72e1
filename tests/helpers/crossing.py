"""Models through whose cuts several tensors pass, and their data: ids with masks, of sentences of different lengths."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsl.data import TaskData, TreeExamples

WORDS, LENGTH, WIDTH, CLASSES = 30, 6, 8, 3


@dataclass
class Answer:
    """What a model of this kind returns."""

    logits: Tensor
    hidden: Tensor


class Block(nn.Module):
    """Attends to what the mask lets it see."""

    def __init__(self, dropout: float):
        super().__init__()
        self.query, self.value, self.norm = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden, mask):
        found = nn.functional.scaled_dot_product_attention(self.query(hidden), hidden, self.value(hidden), mask)
        return self.norm(hidden + self.dropout(found))


class Reader(nn.Module):
    """Embeds words, attends twice with one mask, and adds the embedding again behind: a skip over every cut."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.first, self.second = Block(dropout), Block(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids, attention_mask=None):
        embedded = self.embed(input_ids)
        mask = self.additive(attention_mask, embedded.dtype)
        hidden = self.first(embedded, mask)
        hidden = self.second(hidden, mask) + embedded
        return Answer(self.head(self.pooled(hidden, attention_mask)), hidden)

    def additive(self, attention_mask, dtype):
        """The mask as a summand, with large negative numbers."""
        return (1 - attention_mask[:, None, :].to(dtype)) * -1e30

    def pooled(self, hidden, attention_mask):
        counted = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * counted).sum(1) / counted.sum(1)


class Untraceable(Reader):
    """As `Reader`, but its forward asks for a number of dimensions, which torch.fx cannot follow."""

    def forward(self, input_ids, attention_mask=None):
        if input_ids.dim() == 1:
            input_ids = input_ids[None]
        return super().forward(input_ids, attention_mask)


def reader(kind: type[Reader] = Reader, dropout: float = 0.0) -> Reader:
    torch.manual_seed(0)
    return kind(dropout)


def sentences(rows: int = 48, seed: int = 0) -> TreeExamples:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (rows, LENGTH), generator=draw)
    lengths = torch.randint(2, LENGTH + 1, (rows, 1), generator=draw)
    mask = (torch.arange(LENGTH) < lengths).long()
    return TreeExamples({"input_ids": ids * mask, "attention_mask": mask}, ids[:, 0] % CLASSES)


def sentence_task() -> TaskData:
    return TaskData("sentences", sentences(), sentences(24, 1), CLASSES)
