"""One back trained on the cohort's uploads pooled: parallel split learning (PSL) and SGLR."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, one_of
from fsl.segments.states import State
from fsl.segments.tensor_trees import Values, gradient_of, joined, mapped, tensors_of
from fsl.trainers.back_steps import cut_gradient, cut_leaf
from fsl.trainers.edge_trainer import EdgeBench, SharedBack
from fsl.trainers.judging import Trial, judged
from fsl.trainers.split_avg import split_avg
from fsl.trainers.uploads import Reply, Upload


class Pooled(SharedBack):
    """One back for the cohort: a step's uploads are concatenated, one forward, one backward, one optimizer step.

    Back loss: sum_k share_k * mean loss of device k, with shares b_k/B (`weights="rows"`) or n_k/n over the live
    devices ("samples"). Device k gets the gradient of its own mean loss: its rows of the pooled gradient / share_k.

    SGLR (Pal et al. 2021, arXiv 2112.05929) adds two rules. SplitLr: the learning rate times (B / b)^alpha, b the
    largest batch of the step, so K^alpha for equal batches of K live devices. SplitAvg: in each step a random subset
    of round-half-up(phi * K) devices gets one common gradient, the average over the subset, row j with row j
    (`average="sum"`: their sum, Eq. 15 read literally). `subset="all"` averages over all devices and gives it to all
    wherever phi > 0, as the released code does. Where batches in the subset differ in size, `ragged="drop"` leaves
    those out that differ from the most frequent size (the larger of two), and "pad" fills them up with zero rows.
    The cut gradients are those of the weights before the step.
    """

    lockstep = True
    pools = True
    movable = True
    tails = True

    def __init__(
        self,
        phi: float = 0.0,
        alpha: float = 0.0,
        subset: Literal["random", "all"] = "random",
        average: Literal["mean", "sum"] = "mean",
        ragged: Literal["drop", "pad"] = "drop",
        weights: Literal["rows", "samples"] = "rows",
    ):
        if not 0 <= phi <= 1:
            raise ConfigError(f"phi={phi}: it is a share of the devices, from 0 to 1")
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ConfigError(f"alpha={alpha}: it is an exponent of the number of devices, a finite number >= 0")
        self.phi = phi
        self.alpha = alpha
        self.subset = one_of("subset", subset, ("random", "all"))
        self.average = one_of("average", average, ("mean", "sum"))
        self.ragged = one_of("ragged", ragged, ("drop", "pad"))
        self.weights = one_of("weights", weights, ("rows", "samples"))

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self._weight: dict[int, float] = {}
        self._counts = Counter(averaged=0, ragged=0)

    def open(self, device: int, weight: float) -> None:
        """The device joins the pool."""
        self._weight[device] = weight

    @judged
    def step(self, messages: Sequence[Upload]) -> Sequence[Reply] | None:
        """One step of the back on all uploads together; to each device its own gradient, or the common one (SGLR)."""
        sizes, shares = self._sizes(messages)
        smashed = cut_leaf(joined([upload.smashed.detach() for upload in messages]))
        with Trial(self.learner, messages[0], self.bench.loss_limit) as trial:
            losses_of = partial(self._losses, uploads=messages, sizes=sizes, shares=shares)
            layer_seed = self.layer_seed(messages)
            outputs = self.learner.forward(smashed.clone(), layer_seed, lambda found: losses_of(found)[1])
            losses, loss = losses_of(outputs)  # sum_k share_k * mean loss of device k
            loss.backward()
            found = gradient_of(smashed)
            if not trial.passes(losses, () if found is None else tensors_of(found)):
                return None
            self.learner.set_rate(self.bench.learning_rate * self._scale(sizes))  # SplitLr
            self.learner.step(messages[0].step, batches=len(messages))
        self.examples += sum(sizes)
        gradients = self._own(smashed, found, sizes, shares)  # of each device's own mean loss
        common = self._common(messages[0].step, gradients) if smashed.requires_grad else {}  # SplitAvg
        return [
            Reply(upload.device, upload.step, common.get(k, gradients[k]), losses[k], common=k in common)
            for k, upload in enumerate(messages)
        ]

    def counts(self) -> Mapping[str, int]:
        """`averaged`: cut gradients that were replaced by the common one; `ragged`: dropped from it, or padded."""
        return self._counts

    def _sizes(self, uploads: Sequence[Upload]) -> tuple[list[int], list[float]]:
        """The rows b_k of each device, and its share of the back's loss; shares add up to 1."""
        sizes = [len(upload.targets) for upload in uploads]
        weights = [self._weight[u.device] for u in uploads] if self.weights == "samples" else sizes
        total = sum(weights)
        return sizes, [weight / total for weight in weights]

    def _scale(self, sizes: list[int]) -> float:
        return float((sum(sizes) / max(sizes)) ** self.alpha)

    def _losses(
        self, outputs: Tensor, uploads: Sequence[Upload], sizes: list[int], shares: list[float]
    ) -> tuple[list[Tensor], Tensor]:
        """The mean loss of each device, detached; and the back's, their mean by shares."""
        objective, targets = self.bench.objective, torch.cat([upload.targets for upload in uploads])
        rows = objective.rows(outputs, targets) if len(uploads) > 1 else None
        if rows is not None:
            means = torch.stack([part.mean() for part in rows.detach().split(sizes)])
            per_row = torch.tensor([share / size for share, size in zip(shares, sizes)])
            return list(means.unbind()), rows @ per_row.repeat_interleave(torch.tensor(sizes)).to(rows)
        own = list(objective.losses(outputs.split(sizes), targets.split(sizes)))
        loss = own[0] if len(own) == 1 else torch.stack(own) @ torch.tensor(shares).to(own[0])
        return [one.detach() for one in own], loss

    def _own(self, smashed: Values, found: Values | None, sizes: list[int], shares: list[float]) -> list[Values]:
        """Each device's rows of the pooled gradient, divided by its share."""
        gradients: list[Values] = list(cut_gradient(smashed, found).split(sizes))
        if not smashed.requires_grad:
            return gradients
        return [rows if share == 1 else mapped(_over(share), rows) for rows, share in zip(gradients, shares)]

    def _common(self, step: int, gradients: Sequence[Values]) -> dict[int, Values]:
        """The common gradient of each position of the subset that gets it; empty where there is none to speak of."""
        common, ragged = split_avg(gradients, self._subset(step, len(gradients)), self.average, self.ragged)
        self._counts["ragged"] += ragged
        self._counts["averaged"] += len(common)
        return common

    def _subset(self, step: int, live: int) -> list[int]:
        size = live if self.subset == "all" and self.phi else math.floor(self.phi * live + 0.5)
        if size < 2:  # the average of one is its own
            return []
        if size == live:
            return list(range(live))
        draw = seeds.torch_generator(
            self.bench.seed, "subset", segment=f"edge-{self.edge}", round=self.bench.round, step=step
        )
        return sorted(torch.randperm(live, generator=draw)[:size].tolist())


def _over(share: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient / share
