"""The device's end of the data plane: its line to an edge, and a round of a node's devices."""
