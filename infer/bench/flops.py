"""Counting floating-point operations, attention included, without computing anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from xdyna.infer.bench.plans import Plan


def _attention_on_cpu(query: Any, key: Any, value: Any, *others: Any, **settings: Any) -> int:
    """Of shapes [B, heads, N, C], as torch hands them over."""
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


def flop_counter() -> FlopCounterMode:
    """Torch's counter, which by itself does not know the fused attention that runs on a CPU.

    A multiplication with the addition that follows it counts as two.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_on_cpu})
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    """In place of torch's record of which module is running: it costs more than the rest of the counting."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class EqualWhenEmpty(TorchFunctionMode):
    """Tensors without values are taken to be equal when their shapes are.

    So that counting takes the way of the default prompts, the empty one for both halves of the guidance.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.equal and args[0].device.type == "meta":
            return args[0].shape == args[1].shape
        return func(*args, **(kwargs or {}))


#: Parts that are called again and again with the same shapes, and say the same whenever they are.
REPEATED = (BasicTransformerBlock, ResnetBlock2D, AnimateDiffTransformer3D, Decoder)


@contextmanager
def counted_once(networks: Iterable[nn.Module], counter: FlopCounterMode) -> Iterator[None]:
    """Without values, a part that is called with the same shapes again is not run again: its count is repeated.

    Following shapes through a network takes seconds, and a long clip has many windows.
    """
    parts = {
        module
        for network in networks
        for module in network.modules()
        if isinstance(module, REPEATED) and next(module.parameters()).is_meta
    }
    for part in parts:
        part.forward = _remembering(part.forward, counter)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _remembering(forward: Callable[..., Any], counter: FlopCounterMode) -> Callable[..., Any]:
    seen: dict[Any, tuple[int, Any]] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        key = _shapes((args, kwargs))
        if key in seen:
            flops, out = seen[key]
            counter.flop_counts["Global"]["again"] += flops
            return out
        before = counter.get_total_flops()
        out = forward(*args, **kwargs)
        if key is not None:
            seen[key] = counter.get_total_flops() - before, out
        return out

    return call


def _shapes(value: Any) -> Any:
    """Arguments with shapes in the place of tensors; None where one is to be written to, or is unknown."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, dict):
        if value.get("record") is not None:
            return None
        value = (tuple(value), *value.values())
    if isinstance(value, (tuple, list)):
        parts = tuple(_shapes(part) for part in value)
        return None if None in parts else parts
    return ("", value) if value is None or isinstance(value, (str, int, float)) else None


def count_flops(plan: Plan) -> dict[str, int]:
    """Floating-point operations of one run by stretch: `step 0`, `step 1` .., `decode`."""
    stretches: dict[str, int] = defaultdict(int)
    before = 0

    with torch.no_grad(), EqualWhenEmpty(), flop_counter() as counter, counted_once(plan.networks, counter):

        def on_stretch(name: str) -> None:
            nonlocal before
            now = counter.get_total_flops()
            stretches[name] += now - before
            before = now

        plan.run(on_stretch)
    return dict(stretches)


def flops_of_steps(stretches: dict[str, int], steps: int) -> int:
    """Operations of a run of some steps, from a count of at least two: the steps after the first are alike."""
    later = stretches.get("step 1", 0)
    return stretches["step 0"] + (steps - 1) * later + stretches["decode"]
