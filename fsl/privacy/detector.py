"""Detects a hijacking edge from a device: an honest edge's cut gradients depend on labels, a hijacker's do not."""

from torch import Tensor
from torch.nn import functional as F

from fsl.errors import HijackedError
from fsl.privacy.settings import Detector


def label_gap(gradients: Tensor, labels: Tensor) -> float | None:
    """How much more alike gradients (B, ...) of one label point than those of two: the gap of their mean cosines.

    From -2 to 2; None for a batch that has not both kinds of pairs. Fu et al. 2023, "Focusing on Pinocchio's Nose: A
    Gradients Scrutinizer to Thwart Split-Learning Hijacking Attacks".
    """
    alike = labels[:, None] == labels[None, :]
    alike.fill_diagonal_(False)
    others = labels[:, None] != labels[None, :]
    if not alike.any() or not others.any():
        return None
    directions = F.normalize(gradients.flatten(1).float(), dim=1)
    cosines = directions @ directions.T
    return float(cosines[alike].mean() - cosines[others].mean())


class Watch:
    """One device's watch in one round."""

    def __init__(self, detector: Detector, device: int, round: int):
        self._detector = detector
        self._where = f"round {round}, device {device}"
        self._labels: dict[int, Tensor] = {}
        self._gaps: list[float] = []

    def note_labels(self, step: int, labels: Tensor) -> None:
        """The labels (B,) that the edge is told in this step."""
        self._labels[step] = labels

    def look(self, step: int, gradients: Tensor) -> None:
        """The cut gradients (B, ...) that came back; HijackedError where those so far do not depend on labels."""
        gap = label_gap(gradients, self._labels.pop(step))
        if gap is None:
            return
        self._gaps.append(gap)
        mean = sum(self._gaps) / len(self._gaps)
        if len(self._gaps) >= self._detector.after and mean < self._detector.threshold:
            raise HijackedError(
                f"{self._where}, step {step}: it stopped, because its cut gradients do not depend on its labels (those "
                f"of equal labels are {mean:.3f} more alike than others over {len(self._gaps)} steps; "
                f"privacy.detector.threshold={self._detector.threshold:g}): its edge may be hijacking the training; "
                "ask who runs it"
            )
