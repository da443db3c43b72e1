"""Reports over runs: tables, figures, and one page."""
