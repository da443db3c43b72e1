"""Attacks that measure what a run gives away. None of them proves that more is not to be had."""

from fsl.attacks.attack import Attack, Finding, Pictures, Target
from fsl.attacks.hijacking import FSHA, Hijacker
from fsl.attacks.inversion import Inversion
from fsl.attacks.label_inference import LabelInference
from fsl.attacks.membership import MembershipInference
from fsl.attacks.unsplit import UnSplit

__all__ = [
    "FSHA",
    "Attack",
    "Finding",
    "Hijacker",
    "Inversion",
    "LabelInference",
    "MembershipInference",
    "Pictures",
    "Target",
    "UnSplit",
]
