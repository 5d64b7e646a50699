"""Calls of the UNet as CUDA graphs: recorded once for each set of shapes, then launched as a whole.

Where windows are small, a GPU waits for Python between one kernel and the next. A graph's kernels follow each other
without it. What is recorded reads its inputs from fixed places in memory, so they are copied there before each launch,
and the result is copied out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xdyna.errors import UserError

if TYPE_CHECKING:
    from xdyna.configs.animate import AnimateConfig
    from xdyna.denoise import Predictor
    from xdyna.infer.engine.plan import Plan
    from xdyna.unet import XDynaUNet

#: Runs a function once or more and returns what runs it again, on the same memory, and where the result is then.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
#: Calls before the one that is recorded, in which libraries choose kernels and take their work space.
WARM_UP = 2

logger = logging.getLogger("xdyna")


def check_graphs(device: torch.device, config: AnimateConfig) -> None:
    """Refuse where there are no graphs, or where Python has to look into the UNet while it runs.

    Raises:
        UserError: not CUDA, or a switch that needs more than the UNet's result.
    """
    if device.type != "cuda":
        raise UserError(f"--cuda-graphs: are a GPU's, wanted --device cuda, got {device.type}; leave it out")
    for name, off in (("reuse_every", 1), ("merge_tokens", 0)):
        value = getattr(config.fast, name)
        if value > off:
            raise UserError(
                f"--cuda-graphs: does not go with fast.{name}={value} (--preset {config.preset}), which works inside "
                "the UNet; leave one of them out"
            )


def check_graphs_fit(plan: Plan) -> None:
    """Refuse where weights come and go: a graph reads them where they were.

    Raises:
        UserError: the plan keeps something on the host.
    """
    if plan.offload != "none":
        raise UserError(
            "--cuda-graphs: weights must wait on the host to fit into memory, and a graph wants them in one place; "
            "give more --vram, lower --size, or leave it out"
        )


def capture_on_gpu(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Record the kernels of a function; see `Capture`."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


class GraphedUNet:
    """Stands for an `XDynaUNet` in a predictor and calls it through graphs.

    Args:
        unet: with its adapters attached, all of it on one device and staying there.
        recorded: graphs by the shapes of their inputs, filled by this object. They hold as long as the UNet's weights
            and the adapters' strengths do: for one job.
        capture: what records.
    """

    def __init__(self, unet: Any, recorded: dict[Any, _Recorded], capture: Capture = capture_on_gpu) -> None:
        self._unet, self._recorded, self._capture = unet, recorded, capture

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: Any = None,
        mid_block_additional_residual: Tensor | None = None,
        reference_cache: Any = None,
        record: Any = None,
    ) -> Any:
        """See `XDynaUNet.forward`."""
        values = (
            sample,
            torch.as_tensor(timestep, device=sample.device),
            encoder_hidden_states,
            down_block_additional_residuals,
            mid_block_additional_residual,
            None if reference_cache is None else dict(reference_cache),
        )
        if record is not None:  # is filled in Python, once a step
            return self._unet(*values, record=record)
        leaves, layout = torch.utils._pytree.tree_flatten(values)
        key = (str(layout), tuple((tuple(x.shape), x.dtype) for x in leaves if x is not None))
        if key not in self._recorded:
            logger.info("CUDA graphs: recording a call of %d window(s)", len(sample))
            self._recorded[key] = _Recorded(self._unet, leaves, layout, self._capture)
        return SimpleNamespace(sample=self._recorded[key](leaves))


class _Recorded:
    """One recorded call."""

    def __init__(self, unet: Any, leaves: list[Tensor | None], layout: Any, capture: Capture) -> None:
        self._inputs = [None if x is None else x.detach().clone() for x in leaves]

        def run() -> Tensor:
            out: Tensor = unet(*torch.utils._pytree.tree_unflatten(self._inputs, layout)).sample
            return out

        self._replay, self._out = capture(run)

    def __call__(self, leaves: list[Tensor | None]) -> Tensor:
        for kept, given in zip(self._inputs, leaves, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
        self._replay()
        return self._out.clone()


def graphed(predictor: Predictor, capture: Capture = capture_on_gpu) -> Predictor:
    """The same predictions through graphs, for one job; without them from where memory runs out."""
    recorded: dict[Any, _Recorded] = {}
    is_on = True

    def predict(unet: XDynaUNet, *args: Any, **settings: Any) -> Tensor:
        nonlocal is_on
        if not is_on:
            return predictor(unet, *args, **settings)
        called: Any = GraphedUNet(unet, recorded, capture)
        try:
            return predictor(called, *args, **settings)
        except torch.OutOfMemoryError:
            is_on = False
            recorded.clear()
            logger.warning("CUDA graphs: their memory is needed; goes on without them")
            raise

    return predict
