"""Makes many runs: sweeps through Hydra, and searches through Optuna."""
