"""Differential privacy, and what it protects from whom."""

from fsl.privacy.clip_rules import ClipRule
from fsl.privacy.settings import DPSGD, ClientLevel, CutNoise, Detector, NoPeek, Privacy, RandomizedLabels

__all__ = ["DPSGD", "ClientLevel", "ClipRule", "CutNoise", "Detector", "NoPeek", "Privacy", "RandomizedLabels"]
