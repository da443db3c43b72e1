"""What the accounts must know of an edge trainer: whether its back has a private step, and whom a sample reaches.

Of fsl's own trainers this file knows it. A trainer of one's own says `private = True` in its own body where its back
can be trained by DP-SGD, since what it inherits was said of another step; and it may say what else differs:
`spread(devices) -> int`, how many of so many devices' fronts one sample moves in a step, and
`unaccountable(privacy) -> str | None`, why training with it has no valid account, and what to change.
"""

import math

from fsl.errors import ConfigError
from fsl.privacy.settings import Privacy
from fsl.trainers.edge_trainer import EdgeTrainer
from fsl.trainers.pooled import Pooled
from fsl.trainers.replicated import Replicated
from fsl.trainers.sequential import Sequential

_PRIVATE = (Replicated, Sequential, Pooled)  # their steps clip what each sample contributes, if their learners do


def has_private_step(kind: type[EdgeTrainer]) -> bool:
    """Whether a trainer, or what it is derived from, says that its back can be trained by DP-SGD."""
    for base in kind.__mro__:
        if "private" in vars(base):
            return bool(vars(base)["private"])
        if base in _PRIVATE:
            return True
    return False


def declares_private(kind: type[EdgeTrainer]) -> bool:
    """Whether its author says that its back can be trained by DP-SGD: of itself, not of what it is derived from."""
    return has_private_step(kind) and (kind.__module__.startswith("fsl.") or "private" in vars(kind))


def fronts_moved(trainer: EdgeTrainer, devices: int) -> int:
    """Returns how many of `devices` devices' fronts one sample moves in a step: its own, but for averaged gradients.

    ConfigError for a trainer's own `spread(devices)` that is no number of at least 1; a fraction counts as one more.
    """
    own = getattr(trainer, "spread", None)
    if callable(own):
        found = own(devices)
        if isinstance(found, bool) or not isinstance(found, int | float) or not (math.isfinite(found) and found >= 1):
            raise ConfigError(
                f"{type(trainer).__name__}.spread() gave {found!r}; give how many fronts, a number from 1"
            )
        return math.ceil(found)
    if isinstance(trainer, Pooled):
        size = devices if trainer.subset == "all" and trainer.phi else math.floor(trainer.phi * devices + 0.5)
        return max(size, 1)
    return 1


def unaccountable(trainer: EdgeTrainer, privacy: Privacy) -> str | None:
    """Why training with this trainer has no valid account, and what to change; None where it has."""
    own = getattr(trainer, "unaccountable", None)
    if callable(own):
        found: str | None = own(privacy)
        return found
    return _unaccountable_pool(trainer, privacy) if isinstance(trainer, Pooled) else None


def _unaccountable_pool(trainer: Pooled, privacy: Privacy) -> str | None:
    """Averaged gradients need rows that keep their positions, and all else sizes that mean nothing."""
    if privacy.poisson and trainer.phi > 0:
        return (
            f"phi={trainer.phi}: averaged cut gradients let a sample move other devices' fronts by where its row is, "
            "and a Poisson draw shifts the rows, so nothing bounds it; use phi=0, or "
            "privacy.dp_sgd.sampling=shuffle"
        )
    if privacy.poisson and trainer.alpha > 0:
        return (
            f"alpha={trainer.alpha}: the learning rate would follow the sizes of Poisson batches; use alpha=0, or "
            "privacy.dp_sgd.sampling=shuffle"
        )
    if trainer.weights != "rows":
        return f"weights={trainer.weights}: every sample must count alike in the back's step; use weights=rows"
    return None
