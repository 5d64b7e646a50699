"""Scoring generated videos by a frozen protocol: reading, measuring, keeping results, comparing them."""
