"""How a job is fitted into the memory there is: what is computed at once, and what waits on the host meanwhile.

A plan is the first of a list, from the fastest to the most frugal, whose counted bytes fit. `lower` goes one notch down
that list; it is used while counting and when memory runs out all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from xdyna.configs.animate import AnimateConfig
from xdyna.infer.engine.memory import Shapes, Work

if TYPE_CHECKING:
    from xdyna.pipeline import XDynaPipeline

# Motion modules attend along every latent pixel of every row: at 512x896 more windows come near the 65,535 rows that
# torch's attention takes on CUDA.
MOST_WINDOWS, MOST_FRAMES = 4, 8
#: Of a GPU's memory: what its driver, its libraries' work space and gaps between blocks take. Not among the bytes.
RESERVE, GAPS = 512 << 20, 0.05
GIB = 1 << 30

Stage = Literal["encode", "denoise", "decode"]
Offload = Literal["none", "model", "sequential"]


class Batches(NamedTuple):
    """What goes through the networks together.

    Attributes:
        windows: windows per call of the UNet.
        frames: frames per call of the VAE.
    """

    windows: int
    frames: int


@dataclass(frozen=True)
class Plan:
    """What a job does about memory.

    Attributes:
        device: type of the device.
        dtype: of the networks.
        window_batch: windows per call of the UNet.
        vae_batch: frames per call of the VAE.
        apart: the halves of guidance run one after the other.
        tiling: the VAE cuts frames into tiles; results differ slightly.
        offload: `model` keeps networks on the host that are not used in a stage, `sequential` every layer that is not
            running.
        counted: most bytes of tensors on the device in each stage; empty where nothing was counted.
        budget: bytes that they were to fit into; None where there is no limit.
        clip: bytes of the clip's latents in a step, which lie on the host; 0 where nothing was counted.
    """

    device: str
    dtype: str
    window_batch: int = 1
    vae_batch: int = 1
    apart: bool = False
    tiling: bool = False
    offload: Offload = "none"
    counted: tuple[tuple[str, int], ...] = ()
    budget: int | None = None
    clip: int = 0

    @property
    def peak(self) -> int:
        """Bytes in the stage that takes most."""
        return max((count for _, count in self.counted), default=0)

    def line(self) -> str:
        """For the user."""
        windows = "1 window" if self.window_batch == 1 else f"{self.window_batch} windows"
        frames = "1 frame" if self.vae_batch == 1 else f"{self.vae_batch} frames"
        parts = [f"{self.device}, {self.dtype}", f"{windows} and {frames} at once"]
        parts += ["halves of guidance apart"] * self.apart + ["VAE in tiles"] * self.tiling
        if self.offload != "none":
            parts.append({"model": "idle networks on the host", "sequential": "idle layers on the host"}[self.offload])
        if self.counted:
            stages = ", ".join(f"{stage} {count / GIB:.2f}" for stage, count in self.counted)
            of = "" if self.budget is None else f" of {self.budget / GIB:.2f}"
            parts.append(f"about {self.peak / GIB:.2f}{of} GiB ({stages})")
        if self.clip and self.device != "cpu":
            parts.append(f"the clip's latents on the host ({self.clip / GIB:.2f} GiB)")
        return f"plan: {', '.join(parts)}"


def lower(plan: Plan, stage: Stage, *, guided: bool = True, fixed: bool = False) -> Plan | None:
    """The plan one notch down, so that a stage takes less; None from the last one.

    Args:
        plan: does not fit.
        stage: that did not fit.
        guided: there are two halves of guidance.
        fixed: batches are one whatever the plan says, so lowering them is no use.
    """
    if stage == "denoise" and plan.window_batch > 1 and not fixed:
        return replace(plan, window_batch=plan.window_batch // 2)
    if stage == "decode" and plan.vae_batch > 1 and not fixed:
        return replace(plan, vae_batch=plan.vae_batch // 2)
    if stage == "denoise" and guided and not plan.apart:
        return replace(plan, apart=True)
    if stage != "denoise" and not plan.tiling:
        return replace(plan, tiling=True)
    if plan.device != "cpu" and plan.offload != "sequential":
        return replace(plan, offload="model" if plan.offload == "none" else "sequential")
    return None


def make_plan(
    shapes: Shapes,
    work: Work,
    device: torch.device,
    *,
    budget: int | None = None,
    window_batch: int | None = None,
    vae_batch: int | None = None,
    features_bytes: int = 0,
    offload: bool = True,
    may_part: bool = True,
) -> Plan:
    """The fastest plan that fits; the most frugal one where none does (see `fits`).

    Args:
        shapes: of the pipeline.
        work: what is asked for.
        device: that runs it.
        budget: bytes of the device; by default what is free on a GPU, and no limit elsewhere.
        window_batch: windows at once; None: decided here.
        vae_batch: frames at once; likewise.
        features_bytes: kept of the control maps.
        offload: may be used.
        may_part: the halves of guidance may run apart.
    """
    budget = free_bytes(device) if budget is None else budget
    # On a CPU larger batches pay with small frames alone (`xdyna.infer.engine.small_frames`), which need no plan.
    most = (MOST_WINDOWS, MOST_FRAMES) if device.type == "cuda" and budget is not None else (1, 1)
    plan = Plan(device.type, shapes.dtype, window_batch or most[0], vae_batch or most[1], budget=budget)
    counter = _Counter(shapes, work, features_bytes)
    decided = {"denoise": window_batch is not None, "decode": vae_batch is not None}
    while not fits(plan := counter.counted(plan)):
        stage = counter.worst(plan)
        lowered = lower(plan, stage, guided=work.guided and may_part, fixed=decided.get(stage, False))
        if lowered is None or (lowered.offload != "none" and not offload):
            break
        if lowered.offload != plan.offload:  # with more room, what was lowered before need not be
            lowered = replace(
                lowered, window_batch=window_batch or most[0], vae_batch=vae_batch or most[1], apart=False, tiling=False
            )
        plan = lowered
    return plan


def fits(plan: Plan) -> bool:
    """Whether the counted bytes, and what a GPU takes beside them, are within the budget."""
    if plan.budget is None:
        return True
    beside = RESERVE + GAPS * plan.peak if plan.device == "cuda" else 0
    return plan.peak + beside <= plan.budget


def free_bytes(device: torch.device) -> int | None:
    """What a GPU has free for us, counting what torch holds of it; None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


class _Counter:
    """Counts plans for one job; each shape is counted once."""

    def __init__(self, shapes: Shapes, work: Work, features_bytes: int) -> None:
        self._shapes, self._work, self._features = shapes, work, features_bytes

    def counted(self, plan: Plan) -> Plan:
        """The plan with the bytes of its stages. The clip's latents lie on the host, which may be the device."""
        shapes, work = self._shapes, self._work
        clip = shapes.clip(work)
        own = clip if plan.device == "cpu" else 0
        latents = shapes.latents(work) if plan.device == "cpu" else 0
        features = min(self._features, shapes.features(work))
        bytes_of = {
            "encode": shapes.encode(work, tiling=plan.tiling) + self._weights(plan, shapes.ENCODING),
            "denoise": shapes.denoise(work, plan.window_batch, apart=plan.apart)
            + features + own + self._weights(plan, shapes.DENOISING),
            "decode": shapes.decode(work, plan.vae_batch, tiling=plan.tiling)
            + latents + self._weights(plan, shapes.DECODING),
        }  # fmt: skip
        return replace(plan, counted=tuple(bytes_of.items()), clip=clip)

    def worst(self, plan: Plan) -> Stage:
        """The stage that takes most."""
        stages: dict[str, Stage] = {"encode": "encode", "denoise": "denoise", "decode": "decode"}
        return stages[max(plan.counted, key=lambda item: item[1])[0]]

    def _weights(self, plan: Plan, used: tuple[str, ...]) -> int:
        weights = self._shapes.weights
        if plan.offload == "sequential":
            return self._shapes.largest_layer + self._shapes.resident
        if plan.offload == "model":
            return sum(weights.get(name, 0) for name in used)
        return sum(weights.values())


def work_of(config: AnimateConfig, num_frames: int, *, face: bool, schedule: str) -> Work:
    """What a config asks for.

    Args:
        config: with the model's defaults filled in.
        num_frames: of the clip.
        face: face maps are there.
        schedule: the model's, where the config has none.
    """
    sampling = config.sampling()
    return Work(
        sampling.size_wh,
        num_frames,
        min(sampling.window, num_frames),
        min(sampling.overlap, max(0, num_frames - 1)),
        guided=sampling.guidance > 1,
        face=face,
        one_text=config.prompt == config.negative_prompt,
        schedule=config.schedule or schedule,
    )


def plan_batches(config: AnimateConfig, pipe: XDynaPipeline, num_frames: int = 192) -> Batches:
    """The batches of a config on the pipeline's device, with `auto` decided and without offloading.

    Args:
        config: with the model's defaults filled in.
        pipe: on its device.
        num_frames: of the clip.
    """
    windows = None if config.window_batch == "auto" else config.window_batch
    frames = None if config.vae_batch == "auto" else config.vae_batch
    if pipe.unet.device.type == "cpu":
        from xdyna.infer.engine.small_frames import cpu_batches

        sampling = config.sampling()
        paying = cpu_batches(pipe, sampling.size_wh, sampling.window, guided=sampling.guidance > 1)
        return Batches(windows or paying.windows, frames or paying.frames)
    if pipe.unet.device.type != "cuda" or (windows and frames):
        return Batches(windows or 1, frames or 1)
    work = work_of(config, num_frames, face=pipe.face_controlnet is not None, schedule=pipe.config.schedule)
    plan = make_plan(
        Shapes(pipe), work, pipe.unet.device, window_batch=windows, vae_batch=frames, offload=False
    )  # fmt: skip
    return Batches(plan.window_batch, plan.vae_batch)
