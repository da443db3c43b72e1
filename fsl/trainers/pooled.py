"""One back trained on the cohort's uploads pooled: parallel split learning (PSL) and SGLR."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, StepError, one_of
from fsl.messages.steps import Reply, Upload
from fsl.privacy.settings import Privacy
from fsl.segments.finite import usable
from fsl.segments.learner import Release
from fsl.segments.optimizer import set_learning_rate
from fsl.segments.states import State
from fsl.trainers.edge_trainer import EdgeBench, SharedBack, cut_gradient, refusal, usable_alone


@dataclass(frozen=True)
class _Step:
    """A step's uploads side by side: sizes b_k, and each device's share of the back's loss (they add up to 1)."""

    uploads: Sequence[Upload]
    sizes: list[int]
    shares: list[float]


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
    movable = True
    private = True

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
        self._noise = bench.pooled_noise(edge)
        self._weight: dict[int, float] = {}
        self._counts = Counter(averaged=0, ragged=0)

    def open(self, device: int, weight: float) -> None:
        """The device joins the pool."""
        self._weight[device] = weight

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """One step of the back on all uploads together; to each device its own gradient, or the common one."""
        everybody, messages = messages, [upload for upload in messages if len(upload.targets)]
        release = self.bench.release(everybody[0].step, f"edge-{self.edge}", len(everybody))
        if not messages:
            self.learner.step(release=release)
        answered = self._step(messages, release) if messages else []
        if answered is None:
            return self._without_culprits(everybody, messages)
        self.examples += sum(self.bench.rows(len(upload.targets)) for upload in everybody)
        nobody = [Reply(u.device, u.step, u.smashed, torch.zeros(())) for u in everybody if not len(u.targets)]
        return sorted([*answered, *nobody], key=lambda r: r.device)

    def _without_culprits(self, everybody: Sequence[Upload], messages: Sequence[Upload]) -> Sequence[Reply]:
        """The step again, without those whose upload alone cannot be trained on; all, where it is none of them."""
        bench, noise = self.bench, self._noise.at(messages[0].step)
        alone = [usable_alone(self.learner, bench.objective, u, noise, bench.loss_limit) for u in messages]
        bad = [u for u, good in zip(messages, alone) if not good] or messages
        refused = {u.device: refusal(u) for u in bad}
        rest = [u for u in everybody if u.device not in refused]
        return sorted([*(self.step(rest) if rest else []), *refused.values()], key=lambda r: r.device)

    def _step(self, messages: Sequence[Upload], release: Release | None) -> Sequence[Reply] | None:
        """The replies of a step; None where it cannot be applied, and was not."""
        step = self._sized(messages)
        leaf = torch.cat([upload.smashed.detach() for upload in messages])
        if leaf.is_floating_point():
            leaf.requires_grad_()
        set_learning_rate(self.learner.optimizer, self.bench.learning_rate * self._scale(step.sizes))
        try:
            losses = self._train(leaf, step, release)
        except Exception as error:
            raise StepError(messages[0].device, messages[0].step) from error
        if losses is None:
            return None
        gradient = cut_gradient(leaf, leaf.grad)
        if not leaf.requires_grad:
            own = zip(messages, gradient.split(step.sizes), losses)
            return [Reply(upload.device, upload.step, rows, loss) for upload, rows, loss in own]
        gradients = [
            rows if share == 1 else rows / share for rows, share in zip(gradient.split(step.sizes), step.shares)
        ]
        common = self._common(messages[0].step, step.sizes, gradients)
        return [
            Reply(u.device, u.step, common.get(k, gradients[k]), losses[k], common=k in common)
            for k, u in enumerate(messages)
        ]

    def unaccountable(self, privacy: Privacy) -> str | None:
        """Averaged gradients need rows that keep their positions, and all else sizes that mean nothing."""
        if privacy.poisson and self.phi > 0:
            return (
                f"phi={self.phi}: averaged cut gradients let a sample move other devices' fronts by where its row is, "
                "and a Poisson draw shifts the rows, so nothing bounds it; use phi=0, or "
                "privacy.dp_sgd.sampling=shuffle"
            )
        if privacy.poisson and self.alpha > 0:
            return (
                f"alpha={self.alpha}: the learning rate would follow the sizes of Poisson batches; use alpha=0, or "
                "privacy.dp_sgd.sampling=shuffle"
            )
        if self.weights != "rows":
            return f"weights={self.weights}: every sample must count alike in the back's step; use weights=rows"
        return None

    def spread(self, devices: int) -> int:
        """The subset that gets the averaged gradient."""
        size = devices if self.subset == "all" and self.phi else math.floor(self.phi * devices + 0.5)
        return max(size, 1)

    def counts(self) -> Mapping[str, int]:
        """`averaged`: cut gradients that were replaced by the common one; `ragged`: dropped from it, or padded."""
        return self._counts

    def _sized(self, uploads: Sequence[Upload]) -> _Step:
        sizes = [len(upload.targets) for upload in uploads]
        weights = [self._weight[u.device] for u in uploads] if self.weights == "samples" else sizes
        total = sum(weights)
        return _Step(uploads, sizes, [weight / total for weight in weights])

    def _scale(self, sizes: list[int]) -> float:
        return float((sum(sizes) / max(sizes)) ** self.alpha)

    def _train(self, leaf: Tensor, step: _Step, release: Release | None) -> list[Tensor] | None:
        """Forward, backward, optimizer step; the mean loss of each device, None where the step is refused."""
        objective, limit = self.bench.objective, self.bench.loss_limit
        mark = None if limit is None else self.learner.mark()
        outputs = self.learner.forward(leaf.clone(), self._noise.at(step.uploads[0].step))
        targets = torch.cat([upload.targets for upload in step.uploads])
        rows = objective.rows(outputs, targets) if len(step.uploads) > 1 else None
        if rows is not None:
            means = torch.stack([part.mean() for part in rows.detach().split(step.sizes)])
            per_row = [share / size for share, size in zip(step.shares, step.sizes)]
            sizes = torch.tensor(step.sizes)
            loss = rows @ torch.tensor(per_row).repeat_interleave(sizes).to(rows)
            losses = list(means.unbind())
        else:
            parts = zip(outputs.split(step.sizes), targets.split(step.sizes))
            own = [objective.loss(output, target) for output, target in parts]
            loss = own[0] if len(own) == 1 else torch.stack(own) @ torch.tensor(step.shares).to(own[0])
            losses = [part.detach() for part in own]
        loss.backward()
        if mark is not None and not usable(losses, [leaf.grad, *self.learner.made()], limit):
            self.learner.undo(mark)
            return None
        self.learner.step(release=release)
        return losses

    def _common(self, step: int, sizes: list[int], gradients: list[Tensor]) -> dict[int, Tensor]:
        """The common gradient of each position of the subset that gets it; empty where there is none to speak of."""
        chosen = self._subset(step, len(sizes))
        longest = max((sizes[k] for k in chosen), default=0)
        shorter = sum(sizes[k] < longest for k in chosen)
        if shorter and self.ragged == "drop":
            frequent = Counter(sizes[k] for k in chosen)
            longest = max(frequent, key=lambda size: (frequent[size], size))
            chosen, all_chosen = [k for k in chosen if sizes[k] == longest], len(chosen)
            self._counts["ragged"] += all_chosen - len(chosen)
        else:
            self._counts["ragged"] += shorter
        if len(chosen) < 2:
            return {}
        total = gradients[chosen[0]].new_zeros(longest, *gradients[chosen[0]].shape[1:])
        for k in chosen:
            total[: sizes[k]] += gradients[k]
        if self.average == "mean":
            total /= len(chosen)
        self._counts["averaged"] += len(chosen)
        return {k: total[: sizes[k]] for k in chosen}

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
