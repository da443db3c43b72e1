"""Keeps small what autograd saves of a forward pass for the backward pass."""

from fsl.memory.bounded_memory import ErrorBoundedMemory

__all__ = ["ErrorBoundedMemory"]
