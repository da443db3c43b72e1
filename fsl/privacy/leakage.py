"""How much of the inputs is in the smashed data: measures without a guarantee."""

import math

import torch
from torch import Tensor


def distance_correlation(one: Tensor, other: Tensor) -> Tensor:
    """The distance correlation of two samples (B, ...) of B rows each, from 0 (independent) to 1; differentiable.

    Székely, Rizzo & Bakirov 2007, Definition 3 (the biased estimate), as NoPeek uses it (Vepakomma et al. 2020).
    """
    a, b = _centred(one), _centred(other)
    covariance, variances = (a * b).mean(), (a * a).mean() * (b * b).mean()
    # The root has no gradient at zero; smashed data that are all alike say nothing.
    return (covariance.clamp(min=0) / variances.clamp(min=_TINY).sqrt()).clamp(min=_TINY).sqrt()


def _centred(values: Tensor) -> Tensor:
    rows = values.flatten(1).float()
    squares = rows.square().sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * rows @ rows.T).clamp(min=_TINY).sqrt()
    return distances - distances.mean(0, keepdim=True) - distances.mean(1, keepdim=True) + distances.mean()


def mutual_information(inputs: Tensor, smashed: Tensor, neighbours: int = 3, components: int = 4) -> float:
    """An estimate of the mutual information of inputs and smashed data (B, ...), in nats.

    The nearest-neighbour estimate of Kraskov, Stögbauer & Grassberger 2004 (its first algorithm), each side reduced to
    its first principal components, of unit variance, since it fails in many dimensions. It bounds nothing.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    x, z = _principal(inputs, components), _principal(smashed, components)
    both = torch.cat([x, z], dim=1).numpy()
    count = len(both)
    if count <= neighbours:
        return math.nan
    radius = cKDTree(both).query(both, k=neighbours + 1, p=math.inf)[0][:, -1]
    within = [
        cKDTree(side.numpy()).query_ball_point(side.numpy(), radius * (1 - 1e-10), p=math.inf, return_length=True)
        for side in (x, z)
    ]  # each point counts itself
    spread = digamma(within[0]) + digamma(within[1])
    return max(0.0, float(digamma(neighbours) + digamma(count) - spread.mean()))


def _principal(values: Tensor, components: int) -> Tensor:
    rows = values.flatten(1).double()
    rows = rows - rows.mean(0)
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    kept = int((singular > 1e-9 * singular[:1].clamp(min=1e-30)).sum())
    return left[:, : max(1, min(components, kept))] * math.sqrt(len(rows))


_TINY = 1e-12
