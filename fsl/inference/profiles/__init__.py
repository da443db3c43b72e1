"""Measures what a split model costs at each point on a machine, and predicts it for other layers."""
