"""What `fsl-serve` does: serves a run's model, asks it, and makes tokens."""
