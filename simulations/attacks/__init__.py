"""Prepares finished runs as targets of attacks."""
