"""What the cloud of a real federation knows of its nodes, and how it counts a round."""
