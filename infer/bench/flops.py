"""Counting floating-point operations, attention included, without computing anything."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
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


def count_flops(plan: Plan) -> dict[str, int]:
    """Floating-point operations of one run by stretch: `step 0`, `step 1` .., `decode`."""
    stretches: dict[str, int] = defaultdict(int)
    before = 0

    with torch.no_grad(), EqualWhenEmpty(), flop_counter() as counter:

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
