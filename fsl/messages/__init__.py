"""What cloud, nodes, edges and devices say to each other, and what each message weighs in bytes."""
