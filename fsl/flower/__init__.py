"""Touches Flower: records, aggregation, and the Grids of simulations."""
