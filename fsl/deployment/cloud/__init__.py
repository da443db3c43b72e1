"""Keeps the cloud's list of a real federation's nodes, and counts its rounds."""
