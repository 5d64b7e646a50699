"""Compiled transformer blocks: the same numbers up to rounding, each shape after a slow first call.

Regions, not whole networks: blocks of one shape share their code, so that SD1.5 compiles a dozen pieces and not its
hundreds of layers. ResNets are left as they are: there are more widths of them than compile in reasonable time.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

from xdyna.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xdyna.denoise import Predictor
    from xdyna.infer.engine.plan import Plan
    from xdyna.pipeline import XDynaPipeline

#: How often torch may compile one piece of code anew; its own 8 are too few. Every width and number of tokens counts,
#: spatial, temporal and in a ControlNet, and where the reference is kept over windows each place that reads it.
RECOMPILE_LIMIT = 64

logger = logging.getLogger("xdyna")


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where the tools for it are missing.

    Raises:
        UserError: no C++ compiler (CPU), no Triton or C compiler (CUDA), or another kind of device.
    """
    if device.type == "cpu":
        kind, wanted = "C++", [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    elif device.type == "cuda":
        if find_spec("triton") is None:
            raise UserError("--compile: on a GPU it wants the package triton, which is missing; leave it out")
        kind, wanted = "C", [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        raise UserError(f"--compile: works on cpu and cuda, got {device.type}; leave it out")
    if not any(shutil.which(name) for name in wanted):
        raise UserError(
            f"--compile: wants a {kind} compiler, found no {' or '.join(wanted)}; install one or leave it out"
        )


def check_offload(plan: Plan) -> None:
    """Refuse to compile layers whose weights come and go while their block runs.

    Raises:
        UserError: the plan keeps idle layers on the host.
    """
    if plan.offload == "sequential":
        raise UserError(
            "--compile: idle layers must wait on the host to fit into memory, and a compiled block wants its layers "
            "in one place; give more --vram, lower --size, or leave it out"
        )


def compile_blocks(pipe: XDynaPipeline, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let torch compile the transformer blocks of the UNet and the ControlNets, each shape on its first call.

    The block in which the halves of guidance part is run in pieces by `xdyna.fork` and stays uncompiled there.

    Args:
        pipe: with its adapters attached; keys of its weights do not change.
        backend: of `torch.compile`.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    blocks = [block for block in _blocks(pipe) if block._compiled_call_impl is None]
    for block in blocks:
        # Not dynamic: what a shape's code is must not depend on the shapes that came before.
        block.compile(backend=backend, dynamic=False)
    if blocks:
        logger.info("compile: %d blocks, each shape when it first comes: the first step takes longer", len(blocks))


def release_blocks(pipe: XDynaPipeline) -> None:
    """Run the blocks uncompiled again."""
    for block in _blocks(pipe):
        block._compiled_call_impl = None


def _blocks(pipe: XDynaPipeline) -> Iterator[BasicTransformerBlock]:
    for net in (pipe.unet, pipe.pose_controlnet, pipe.face_controlnet):
        for module in net.modules() if net is not None else ():
            if isinstance(module, BasicTransformerBlock):
                yield module


def seconds_spent() -> float:
    """What this process has spent on compiling so far."""
    return float(torch._dynamo.utils.calculate_time_spent()["total_wall_time"])


def compiling(predictor: Predictor) -> Predictor:
    """The same predictions; says how much of a step went into compiling, and makes a compiler's failure one line."""

    def predict(*args: Any, step: int = 0, **settings: Any) -> Tensor:
        before = seconds_spent()
        try:
            predicted = predictor(*args, step=step, **settings)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"--compile: torch could not compile a block: {reason[:300]}; leave it out") from error
        seconds = seconds_spent() - before
        if seconds > 0:
            logger.info("compile: %.1f s of step %d, which later steps are spared", seconds, step + 1)
        return predicted

    return predict
