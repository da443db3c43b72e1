"""What a run's strategy and prices depend on, as frozen dataclasses."""
