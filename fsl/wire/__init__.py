"""The data plane between devices and edges: its messages, and what each weighs in bytes."""
