"""Trains cohorts in simulation faster than message by message, where device and edge share the process."""
