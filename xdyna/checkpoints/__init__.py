"""Official files to and from our diffusers folders; key maps are data."""
