"""What runs on a node of a real federation."""
