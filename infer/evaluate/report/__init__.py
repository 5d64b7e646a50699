"""The page of an evaluation: tables, plots and clips in one file that opens from disk."""
