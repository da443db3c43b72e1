"""Trains cohorts in simulation faster than message by message, where device and edge share the process."""

from fsl.engines.choice import COMPILED, ENGINES, TO_THE_BIT, EngineName, Engines

__all__ = ["COMPILED", "ENGINES", "TO_THE_BIT", "EngineName", "Engines"]
