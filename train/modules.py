"""What of a system trains, what of it a checkpoint holds, and how many parameters that is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def saved_parts(system: nn.Module) -> dict[str, nn.Module]:
    """The parts that a system's checkpoints hold, by name."""
    parts: Any = system.saved
    return dict(parts)


def trained_parameters(system: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, named ``part/key``, each once.

    Raises:
        ValueError: something trains that is in no saved part, and would be lost.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, part in saved_parts(system).items():
        for key, value in part.named_parameters():
            if value.requires_grad and id(value) not in seen:
                seen.add(id(value))
                found[f"{name}/{key}"] = value
    lost = [key for key, value in system.named_parameters() if value.requires_grad and id(value) not in seen]
    if lost:
        raise ValueError(f"{lost[0]} (and {len(lost) - 1} more) trains but is in none of {list(saved_parts(system))}")
    return found


def enable_checkpointing(system: nn.Module) -> None:
    """Let every diffusers model inside compute its activations again in the backward pass."""
    for module in system.modules():
        enable = getattr(module, "enable_gradient_checkpointing", None)
        if enable is not None and getattr(module, "_supports_gradient_checkpointing", False):
            enable()


def count_parameters(*modules: nn.Module, trainable: bool = False) -> int:
    """Parameters of the modules, all of them or those that train; shared ones count once."""
    values = {id(p): p for module in modules for p in module.parameters() if p.requires_grad or not trainable}
    return sum(value.numel() for value in values.values())


def saved_buffers(system: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers of the saved parts, such as running means, named ``part/key``."""
    found: dict[str, Tensor] = {}
    for name, part in saved_parts(system).items():
        parameters = dict(part.named_parameters(remove_duplicate=False))
        for key, value in part.state_dict(keep_vars=True).items():
            if key not in parameters and isinstance(value, Tensor):
                found[f"{name}/{key}"] = value
    return found
