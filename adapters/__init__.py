"""Add-ons to the frozen video UNet: Dynamics-Adapter, image prompt, LoRA."""
