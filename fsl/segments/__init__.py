"""One segment of a split model under training: its tensors, its optimizer, and sums over devices."""
