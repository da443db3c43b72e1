"""A node's line to a run's cloud: one gRPC stream, kept for the run."""
