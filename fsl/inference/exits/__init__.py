"""Early exits: classifiers at stages of a model, trained, and left by samples that are sure enough."""
