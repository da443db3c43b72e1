"""Runs a federation on this machine, as real processes."""

from fsl.deployment.local.local_federation import LocalFederation

__all__ = ["LocalFederation"]
