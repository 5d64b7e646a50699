"""A rendered 2-D world of dancing people with exact ground truth."""
