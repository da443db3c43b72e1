"""Vectors and the code books they are near to: which code is nearest, and k-means."""

import torch
from torch import Tensor

_AT_A_TIME = 1 << 18  # distances that are in memory together


def nearest(vectors: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Returns for vectors (G, N, d) the places (G, N) of the nearest codes of books (G, K, d), and squared distances.

    The first of several codes that are equally near. Distances are rounded, and may be below zero by that.
    """
    if not vectors.shape[1]:
        return torch.empty(vectors.shape[:2], dtype=torch.int64, device=vectors.device), vectors.new_empty(
            vectors.shape[:2]
        )
    squares = book.square().sum(dim=2).unsqueeze(1)
    found, distances = [], []
    for part in vectors.split(_rows_at_a_time(book), dim=1):
        least, places = torch.baddbmm(squares, part, book.transpose(1, 2), alpha=-2).min(dim=2)
        found.append(places)
        distances.append(least + part.square().sum(dim=2))
    return torch.cat(found, dim=1), torch.cat(distances, dim=1)


def k_means(vectors: Tensor, codes: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Returns books (G, K, d) for vectors (G, N, d), K = min(codes, N): so many of Lloyd's iterations on drawn vectors.

    A code that no vector is nearest to moves to a vector that is far from its own, the farthest first. All vectors
    themselves, where they are no more than codes.
    """
    groups, count = vectors.shape[:2]
    if count <= codes:
        return vectors
    drawn = torch.rand(groups, count, generator=generator).topk(codes, dim=1).indices.to(vectors.device)
    book = _taken(vectors, drawn)
    for _ in range(iterations):
        places, distances = nearest(vectors, book)
        book = _means(vectors, places, distances, book)
    return book


def _means(vectors: Tensor, places: Tensor, distances: Tensor, book: Tensor) -> Tensor:
    sums, counts = torch.zeros_like(book), book.new_zeros(book.shape[:2])
    rows = _rows_at_a_time(book)
    for part, own in zip(vectors.split(rows, dim=1), places.split(rows, dim=1)):
        # By a product, since scattered sums differ from call to call on accelerators.
        chosen = torch.zeros(*own.shape, book.shape[1], dtype=book.dtype, device=book.device)
        chosen.scatter_(2, own.unsqueeze(2), 1)
        sums.baddbmm_(chosen.transpose(1, 2), part)
        counts += chosen.sum(dim=1)
    alone = counts == 0
    farthest = distances.topk(book.shape[1], dim=1).indices
    instead = _taken(vectors, farthest.gather(1, (alone.cumsum(dim=1) - 1).clamp(min=0)))
    return torch.where(alone.unsqueeze(2), instead, sums / counts.clamp(min=1).unsqueeze(2))


def _taken(vectors: Tensor, places: Tensor) -> Tensor:
    return vectors.gather(1, places.unsqueeze(2).expand(-1, -1, vectors.shape[2]))


def _rows_at_a_time(book: Tensor) -> int:
    return max(1, _AT_A_TIME // max(1, book.shape[0] * book.shape[1]))
