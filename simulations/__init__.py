"""The entry points: run one simulation, or sweep many."""
