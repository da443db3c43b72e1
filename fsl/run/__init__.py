"""One run, from the first arrays to the report."""
