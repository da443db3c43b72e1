"""Measures the library's speed, memory, bytes and accuracy against baselines."""
