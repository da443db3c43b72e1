"""The edge's end of the data plane: its door, its sessions, and a round of its devices."""
