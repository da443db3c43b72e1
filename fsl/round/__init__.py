"""Computes one round: devices, edges, and the node that hosts them."""
