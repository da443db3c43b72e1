"""Links that lose packets, in training, in simulation and over UDP."""
