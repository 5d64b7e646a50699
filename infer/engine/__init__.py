"""How jobs are run fast and in little memory: what the plain pipeline computes, with less work."""
