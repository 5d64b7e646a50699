"""X-Dyna human image animation as a diffusers extension. Importing this package stays light: no torch here."""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout the sub-packages adapters/, controlnets/, .. lie beside this folder; installed, they lie inside it.
__path__ += [str(root) for root in [Path(__file__).resolve().parents[1]] if (root / "constraints.txt").is_file()]

# Loaded on first use. diffusers finds the classes named in a pipeline folder's model_index.json here.
_LAZY = {
    "DynamicsAdapter": "xdyna.adapters.dynamics",
    "ImagePromptAdapter": "xdyna.adapters.image_prompt",
    "ModelMixin": "diffusers",  # diffusers asks a component's library for it, to learn how to load the component
    "PoseControlNet": "xdyna.controlnets.pose",
    "ReferenceNet": "xdyna.adapters.reference_net",
    "SFaceControlNet": "xdyna.controlnets.s_face",
    "StoredPrompt": "xdyna.prompts",
    "XDynaPipeline": "xdyna.pipeline",
    "XDynaUNet": "xdyna.unet",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'xdyna' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
