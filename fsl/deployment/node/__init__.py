"""Runs a node of a real federation: its devices, its edge, and its owner's limits."""
