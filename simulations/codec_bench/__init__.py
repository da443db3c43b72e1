"""Codecs side by side: accuracy, bytes both ways, time, and the input itself as the baseline."""
