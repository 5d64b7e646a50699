"""Tensors that lie whole in one process or in pieces over many: gathered for files, cut again when read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def gathered(tensor: Tensor) -> Tensor:
    """A copy of the whole tensor on the CPU. Every process has to take part, in the same order."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().to("cpu", copy=True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def cut_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` lies: its device, and its pieces where it is sharded."""
    whole = whole.to(like.device)
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """What an optimiser remembers, by parameter name, whole; the same for any number of processes."""
    state: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        entries = optimizer.state.get(parameter, {})
        state[name] = {
            key: gathered(value) if isinstance(value, Tensor) else value for key, value in sorted(entries.items())
        }
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put back what `optimizer_state` gave."""
    for name, parameter in parameters.items():
        entries = {key: _place(key, value, parameter) for key, value in state.get(name, {}).items()}
        if entries:
            optimizer.state[parameter] = entries


def _place(key: str, value: Any, parameter: nn.Parameter) -> Any:
    """One entry of a parameter's state where the optimiser wants it; torch keeps `step` on the CPU."""
    if not isinstance(value, Tensor) or key == "step":
        return value
    return cut_like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)


def reshard(module: nn.Module) -> None:
    """Drop gathered copies of sharded weights, which a pass without a backward pass leaves behind and later ones would
    take for current."""
    from torch.distributed.fsdp import FSDPModule

    for owner in module.modules():
        if isinstance(owner, FSDPModule):
            owner.reshard()


@torch.no_grad()
def make_whole(module: nn.Module) -> None:
    """Make a sharded module a plain one on the CPU, for writing and looking; its optimiser does not know it any more.

    Every process has to take part. Classes get their own names back, which `save_pretrained` writes down.
    """
    from torch.distributed.fsdp import FSDPModule

    reshard(module)
    for owner in module.modules():
        for key, parameter in list(owner.named_parameters(recurse=False)):
            if hasattr(parameter, "full_tensor"):
                owner._parameters[key] = nn.Parameter(gathered(parameter), requires_grad=parameter.requires_grad)
        if isinstance(owner, FSDPModule):
            state: Any = owner._get_fsdp_state()
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            plain: Any = next(kind for kind in type(owner).__mro__ if not issubclass(kind, FSDPModule))
            owner.__class__ = plain
    module.to("cpu")
