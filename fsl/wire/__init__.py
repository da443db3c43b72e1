"""The data plane between devices and edges: gRPC streams, tokens, and both ends of a session."""
