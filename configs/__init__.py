"""Configurations: frozen pydantic models and the YAML presets beside them."""
