"""What a trained model is handed over as: a folder that loads anywhere, and programs of its segments."""
