"""Chooses where to divide a model, from profiles, rates and loads."""
