"""Profiles of a model's points, tables and figures of them, and the best point at several rates."""
