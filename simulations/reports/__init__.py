"""Reports on runs: tables, figures, and one page."""
