"""Where a denoising stands between two steps: enough to go on from there with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))
#: diffusers keeps the scheduler's settings here; they are the model's, not the run's.
_SETTINGS = "_internal_dict"


@dataclass(frozen=True, eq=False)
class DenoiseState:
    """All that the steps that are left depend on, beside the inputs of the call.

    Attributes:
        step: steps done.
        latents: float32 [1, C, F, h, w].
        scheduler: attributes of the scheduler: plain values, arrays, tensors and lists of these. Multistep schedulers
            keep the predictions of earlier steps there.
        generator: state of the generator that draws noise for the steps, uint8.
    """

    step: int
    latents: Tensor
    scheduler: dict[str, Any]
    generator: Tensor

    @classmethod
    def of(
        cls, step: int, latents: Tensor, scheduler: Any, generator: torch.Generator, *, copy: bool = True
    ) -> DenoiseState:
        """The state after `step` steps; without `copy`, of tensors that the next step may change.

        Raises:
            ValueError: the scheduler keeps something that cannot be saved.
        """
        kept = {name: _copy(value, name, copy) for name, value in vars(scheduler).items() if name != _SETTINGS}
        return cls(step, latents.clone() if copy else latents, kept, generator.get_state())

    def restore(self, scheduler: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        """Put scheduler and generator where they stood, and return the latents.

        Args:
            scheduler: of the same kind, with the same timesteps set.
            generator: that draws noise for the steps.
            device: of the latents, and of tensors that a new scheduler does not have.
        Raises:
            ValueError: the timesteps are others.
        """
        if not torch.equal(self.scheduler["timesteps"].cpu(), scheduler.timesteps.cpu()):
            raise ValueError(f"the state is of other timesteps than {scheduler.timesteps.tolist()}")
        for name, value in self.scheduler.items():
            own = getattr(scheduler, name, None)
            setattr(scheduler, name, _moved(_copy(value, name), own.device if isinstance(own, Tensor) else device))
        generator.set_state(self.generator)
        return self.latents.to(device, torch.float32)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write a safetensors file, with `facts` (plain values) as part of its header.

        Raises:
            OSError, safetensors.SafetensorError: it cannot be written.
        """
        from safetensors.torch import save_file

        tensors = {"latents": self.latents.cpu(), "generator": self.generator}
        tree = {name: _taken_apart(value, f"scheduler.{name}", tensors) for name, value in self.scheduler.items()}
        header = {"step": self.step, "scheduler": tree, "facts": dict(facts)}
        contiguous: dict[int, Tensor] = {}  # by address: what two names stand for is refused
        for name, tensor in tensors.items():
            whole = tensor.contiguous()
            whole = whole.clone() if whole.data_ptr() in contiguous else whole
            contiguous[whole.data_ptr()] = tensors[name] = whole
        save_file(tensors, path, metadata={"xdyna": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> DenoiseState:
        """Read what `save` wrote.

        Raises:
            OSError, ValueError, KeyError, safetensors.SafetensorError: not such a file, or a damaged one.
        """
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["xdyna"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        scheduler = {name: _put_together(value, tensors) for name, value in header["scheduler"].items()}
        return cls(header["step"], tensors["latents"], scheduler, tensors["generator"])


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that a state was saved with.

    Raises:
        OSError, ValueError, KeyError, safetensors.SafetensorError: not a saved state, or a damaged one.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        facts: dict[str, Any] = json.loads((file.metadata() or {})["xdyna"])["facts"]
    return facts


def _copy(value: Any, name: str, tensors: bool = True) -> Any:
    """A copy; of tensors, too, where asked for."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return value.clone() if tensors else value
    if isinstance(value, (np.ndarray, np.generic)):
        return np.array(value)
    if isinstance(value, (list, tuple)):
        return [_copy(item, name, tensors) for item in value]
    raise ValueError(f"scheduler attribute {name} is a {type(value).__name__}, wanted plain values, arrays or tensors")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_moved(item, device) for item in value] if isinstance(value, list) else value


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What JSON can hold of a value; tensors and arrays go into `tensors` and leave their names."""
    if isinstance(value, list):
        return [_taken_apart(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    if isinstance(value, Tensor):
        tensors[name] = value.cpu()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value)
        return {"array": name}
    return value


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    if isinstance(value, dict):
        (kind, name), *_ = value.items()
        return tensors[name] if kind == "tensor" else tensors[name].numpy()
    return value
