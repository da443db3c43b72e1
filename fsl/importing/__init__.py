"""From import paths in configurations and plans to the objects that they name, and back to text."""
