"""Who was trained on."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsl.attacks.attack import Attack, Finding, Target, at_least_one
from fsl.data import Examples
from fsl.errors import ConfigError


@dataclass(frozen=True)
class MembershipInference(Attack):
    """Who gets the released model: a sample on which its loss is low was trained on.

    Yeom et al. 2018, "Privacy Risk in Machine Learning". `auc` (chance 0.5); `advantage`: the largest difference of
    true and false positive rates; `tpr_at_1_percent_fpr` (chance 0.01; Carlini et al. 2022). `rows` of each kind.
    """

    rows: int = 2000

    adversary: ClassVar[str] = "model"
    tails: ClassVar[bool] = True
    needs_cut: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least_one(rows=self.rows)

    def run(self, target: Target) -> Finding:
        """Compare losses of training and test rows."""
        from sklearn.metrics import roc_auc_score, roc_curve

        inside, inside_right = self._losses(target, target.data.train, target.members)
        outside, outside_right = self._losses(target, target.known, torch.arange(len(target.known)))
        member = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))]).numpy()
        scores = -torch.cat([inside, outside]).numpy()
        false, true, _ = roc_curve(member, scores)
        figures = {
            "auc": float(roc_auc_score(member, scores)),
            "advantage": float((true - false).max()),
            "tpr_at_1_percent_fpr": float(true[false <= 0.01].max()),
            "member_accuracy": inside_right,
            "other_accuracy": outside_right,
        }
        return Finding(figures, ("auc",))

    def _losses(self, target: Target, examples: Examples, rows: Tensor) -> tuple[Tensor, float]:
        chosen = rows[torch.linspace(0, len(rows) - 1, min(self.rows, len(rows))).round().to(torch.int64)]
        losses, right = [], 0
        with torch.no_grad():
            for batch in chosen.split(512):
                inputs, targets = examples.batch(batch)
                outputs = target.back(target.front(inputs))
                found, correct = target.objective.rows(outputs, targets), target.objective.correct(outputs, targets)
                if found is None or correct is None:
                    raise ConfigError("attack=membership: this run's objective has no loss of a single row")
                losses.append(found)
                right += int(correct)
        return torch.cat(losses), right / len(chosen)
