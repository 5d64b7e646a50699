"""Training: the loop and its recipes."""
