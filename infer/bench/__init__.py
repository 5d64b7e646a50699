"""Measuring our way of denoising against others, on the same networks."""
