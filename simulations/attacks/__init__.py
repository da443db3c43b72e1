"""Finished runs as targets of attacks."""
