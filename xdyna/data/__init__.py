"""Clips: where training examples come from."""
