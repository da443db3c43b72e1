"""Answers requests for a split model: an edge and its devices, over the wire."""
