"""A pipeline run as a plan says, and what happens when memory runs out all the same: a notch down, and on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate import cpu_offload
from numpy.typing import NDArray
from torch import Tensor

from xdyna.denoise import Conditioning, Predictor
from xdyna.infer.engine.compiled import release_blocks
from xdyna.infer.engine.halves import HalvesApart
from xdyna.infer.engine.plan import Plan, Stage, lower
from xdyna.infer.engine.quantize import refuse_layer_by_layer
from xdyna.unet import XDynaUNet

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from xdyna.pipeline import XDynaPipeline

Made = TypeVar("Made")

#: Attribute of a pipeline that says how it was placed.
_OFFLOAD = "_xdyna_offload"

logger = logging.getLogger("xdyna")


class Fitted:
    """A pipeline under a plan, for one job.

    Args:
        pipe: with its weights on the host or on the device.
        device: that runs it.
        plan: to begin with.
        fixed: batches are one whatever the plan says.
        may_part: the predictor can run the halves of guidance apart.
    Attributes:
        plan: in force.
        num_lowered: how often memory ran out.
    """

    def __init__(
        self,
        pipe: XDynaPipeline,
        device: torch.device,
        plan: Plan,
        *,
        fixed: bool = False,
        may_part: bool = True,
    ) -> None:
        self.plan, self.num_lowered = plan, 0
        self._may_part = may_part
        self._pipe, self._device, self._fixed = pipe, device, fixed
        place(pipe, device, plan)

    def predictor(self, inner: Predictor) -> Predictor:
        """The same predictions, within the plan; a step that runs out of memory is done again a notch down.

        Args:
            inner: kept over the steps; its batch is the plan's.
        """

        def predict(
            unet: XDynaUNet,
            latents: Tensor,
            timestep: Tensor,
            conditioning: Conditioning,
            windows: Sequence[Sequence[int]],
            weights: Sequence[NDArray[np.float32]],
            guidance_scale: float,
            *,
            step: int = 0,
            num_steps: int = 1,
            window_batch: int = 1,
        ) -> Tensor:
            while True:
                try:
                    self._wake(conditioning)
                    called: Any = HalvesApart(unet) if self.plan.apart else unet
                    return inner(
                        called, latents, timestep, conditioning, windows, weights, guidance_scale,
                        step=step, num_steps=num_steps, window_batch=self.plan.window_batch,
                    )  # fmt: skip
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    lowered = self._lowered("denoise", error, guided=guidance_scale > 1 and self._may_part)
                    if lowered is None:
                        raise
                # Outside of the handler: the error's traceback would keep the step's tensors alive.
                self._go_on(lowered, f"step {step + 1} of {num_steps}")

        return predict

    def attempt(self, what: str, run: Callable[[], Made]) -> Made:
        """What `run` makes, done again a notch down as long as it runs out of memory.

        Args:
            what: for the user.
            run: encodes something, with the pipeline's VAE or an encoder.
        """
        while True:
            try:
                return run()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                lowered = self._lowered("encode", error)
                if lowered is None:
                    raise
            self._go_on(lowered, what)

    def decode(self, latents: Tensor, decoder: AutoencoderTiny | None = None) -> Iterator[Tensor]:
        """Frames as `XDynaPipeline.decode_frames` gives them; out of memory, it goes on with the frame it came to."""
        done, num_frames = 0, latents.shape[2]
        while done < num_frames:
            batch = 1 if self._fixed else self.plan.vae_batch
            try:
                for frames in self._pipe.decode_frames(latents[:, :, done:], batch, decoder):
                    done += len(frames)
                    yield frames
                continue
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                lowered = self._lowered("decode", error)
                if lowered is None:
                    raise
            self._go_on(lowered, f"frame {done + 1} of {num_frames}")

    def _lowered(self, stage: Stage, error: BaseException, *, guided: bool = True) -> Plan | None:
        if not is_out_of_memory(error):
            return None
        return lower(self.plan, stage, guided=guided, fixed=self._fixed)

    def _go_on(self, plan: Plan, where: str) -> None:
        """Free what is left over, and let a plan be in force."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        plan = replace(plan, counted=(), budget=None)  # the count was wrong
        logger.warning("out of memory at %s: goes on from there; %s", where, plan.line())
        self.plan = plan
        self.num_lowered += 1
        place(self._pipe, self._device, plan)

    def _wake(self, conditioning: Conditioning) -> None:
        """Bring ControlNets to the device: their parts are called, which offloading does not look at."""
        for control in conditioning.controls:
            hook = getattr(control.net, "_hf_hook", None)
            if self.plan.offload == "model" and hook is not None:
                hook.pre_forward(control.net)


def place(pipe: XDynaPipeline, device: torch.device, plan: Plan) -> None:
    """Put a pipeline's weights where a plan wants them, and let its VAE tile or not.

    What a pipeline was placed by before does not matter.
    """
    if plan.tiling:
        pipe.enable_vae_tiling()
    else:
        pipe.disable_vae_tiling()
    now = getattr(pipe, _OFFLOAD, "none")
    if plan.offload == now:
        if now == "none" and pipe.unet.device.type != device.type:
            pipe.to(device)
        return
    if now == "sequential":  # weights come back from the hooks
        pipe.remove_all_hooks()
    if plan.offload == "none":
        pipe.remove_all_hooks()
        pipe.to(device)
    elif plan.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        refuse_layer_by_layer(pipe)
        release_blocks(pipe)
        _offload_layers(pipe, device)
    setattr(pipe, _OFFLOAD, plan.offload)


def _offload_layers(pipe: XDynaPipeline, device: torch.device) -> None:
    """Keep every layer's weights on the host but while it runs; diffusers' own way cannot do it on a CPU."""
    pipe.remove_all_hooks()
    pipe.to("cpu", silence_dtype_warnings=True)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for name in pipe._exclude_from_cpu_offload:
        if name in parts:
            parts.pop(name).to(device)  # its layers that are the UNet's as well travel with the UNet
    for part in parts.values():
        cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of too little memory, on a GPU or on the host."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
