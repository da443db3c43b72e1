"""Differential privacy, and what it protects from whom."""

from fsl.privacy.settings import DPSGD, ClientLevel, CutNoise, NoPeek, Privacy, RandomizedLabels

__all__ = ["DPSGD", "ClientLevel", "CutNoise", "NoPeek", "Privacy", "RandomizedLabels"]
