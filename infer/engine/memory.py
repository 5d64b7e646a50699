"""How much memory the networks take, counted without running them: on tensors that have shapes but no numbers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xdyna import windows
from xdyna.alive import Alive
from xdyna.denoise import Conditioning, Control, Predictor
from xdyna.infer.engine.halves import HalvesApart
from xdyna.infer.engine.predict import ExactPredictor
from xdyna.infer.engine.quantize import stored_bytes
from xdyna.latents import ConditionMaps
from xdyna.stepping import STEP_FRAMES, scale_clip, step_clip

if TYPE_CHECKING:
    from xdyna.pipeline import XDynaPipeline


@dataclass(frozen=True)
class Work:
    """What a job asks of the networks, as far as memory depends on it.

    Attributes:
        size_wh: (width, height) of the frames, pixels.
        num_frames: driving frames.
        window: driving frames that are denoised together.
        overlap: driving frames that neighbouring windows share.
        guided: both halves of guidance run.
        face: face maps steer.
        one_text: both halves have the same text.
        schedule: of the windows.
    """

    size_wh: tuple[int, int]
    num_frames: int
    window: int
    overlap: int
    guided: bool = True
    face: bool = True
    one_text: bool = True
    schedule: str = "open"


class Shapes:
    """The parts of a pipeline without their numbers, to count with.

    Args:
        pipe: without offloading hooks; its weights are neither copied nor touched.
    Attributes:
        weights: bytes of each part, adapters as part of the UNet.
        largest_layer: bytes of the largest single layer of any part.
        dtype: of the UNet.
        resident: bytes that stay on the device where layers wait on the host: the image prompt's, and buffers.
        copies: of the clip's latents that a step holds at once.
    """

    #: Parts on the device in each stage when idle networks wait on the host. Those that encode run one by one, but the
    #: one before is still there.
    ENCODING = ("vae", "text_encoder", "image_encoder", "image_prompt", "stored_prompt")
    DENOISING = ("unet", "pose_controlnet", "face_controlnet", "vae", "stored_prompt")
    DECODING = ("vae", "stored_prompt")

    def __init__(self, pipe: XDynaPipeline) -> None:
        components = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        # Parts refer to each other: adapters' layers are the UNet's children as well, and adapters know their hosts.
        memo = _bare([value for part in components.values() for value in (*part.parameters(), *part.buffers())])
        self._parts: dict[str, Any] = {
            name: copy.deepcopy(part, memo) for name, part in components.items() if name != "dynamics_adapter"
        }
        self._scale_factor = pipe.vae_scale_factor
        self._known: dict[Any, int] = {}
        self.dtype = str(pipe.unet.dtype).removeprefix("torch.")
        self.copies = clip_copies(pipe.scheduler)
        self.resident = sum(_bytes(value) for part in self._parts.values() for value in part.buffers())
        seen: set[int] = set()
        order = sorted(self._parts, key=lambda name: name != "unet")  # what adapters share with it is the UNet's
        self.weights = {name: _weight_bytes(self._parts[name], seen) for name in order}
        self.resident += self.weights.get("image_prompt", 0)
        self.largest_layer = max(
            sum(_bytes(value) for value in (*layer._parameters.values(), *layer._buffers.values()) if value is not None)
            for part in self._parts.values()
            for layer in part.modules()
        )

    def denoise(self, work: Work, window_batch: int = 1, *, apart: bool = False) -> int:
        """Most bytes alive in a step, without weights and without what there is of the whole clip.

        They grow with the windows at once, whose first one is counted; a clip has no more of them than it needs.

        Args:
            work: what is asked for.
            window_batch: windows per call of the UNet.
            apart: the halves of guidance one after the other.
        """
        one = replace(work, num_frames=min(work.num_frames, 2 * work.window - work.overlap))
        key = ("denoise", one, apart)
        if key not in self._known:
            self._known[key] = self.denoise_counted(one, 1, apart=apart)
        needed = len(windows.make_windows(work.schedule, work.num_frames, work.window, work.overlap, 0))
        return int(self._known[key] * min(window_batch, needed))

    def denoise_counted(
        self, work: Work, window_batch: int, *, apart: bool = False, predictor: Predictor | None = None
    ) -> int:
        """As `denoise`, counted for that very batch over the clip's first windows."""
        unet = self._parts["unet"]
        # Two groups of windows: the second begins with what the first left.
        num_frames = min(work.num_frames, work.window + (2 * window_batch - 1) * (work.window - work.overlap))
        clip = windows.make_windows(work.schedule, num_frames, work.window, work.overlap, 0)
        conditioning, latents = self._inputs(work, num_frames)
        counted: Any = HalvesApart(unet) if apart else unet
        predictor = predictor or ExactPredictor(features_bytes=0)
        with torch.no_grad(), _Countable(same=work.one_text), Alive(self._all_tensors(), "meta") as alive:
            predictor(
                counted,
                latents,
                torch.zeros((), device="meta"),
                conditioning,
                clip,
                windows.blend_weights(clip, num_frames, work.overlap, work.schedule),
                7.5 if work.guided else 1.0,
                window_batch=window_batch,
            )
        return max(0, int(alive.peak) - 2 * _bytes(latents))  # the clip's own are counted for all its frames

    def features(self, work: Work) -> int:
        """Bytes of the embedded control maps of the whole clip."""
        parts = [self._parts[name] for name in ("pose_controlnet", "face_controlnet") if name in self._parts]
        width, height = (side // self._scale_factor for side in work.size_wh)
        per_pixel = sum(part.config.block_out_channels[0] * part.dtype.itemsize for part in parts)
        return int(per_pixel * width * height * work.num_frames)

    def latents(self, work: Work) -> int:
        """Bytes of the clip's latents, once."""
        width, height = (side // self._scale_factor for side in work.size_wh)
        channels: int = self._parts["unet"].config.in_channels
        return int(4 * channels * width * height * work.num_frames)

    def clip(self, work: Work) -> int:
        """Bytes that grow with the clip: its latents, as often as a step has them."""
        return self.copies * self.latents(work)

    def decode(self, work: Work, frames: int, *, tiling: bool = False) -> int:
        """Most bytes alive while the VAE decodes so many frames at once, without weights."""
        vae = self._parts["vae"]
        frames = min(frames, work.num_frames)
        latents = self._latents(work, frames)[0].transpose(0, 1)
        with _tiled(vae, tiling), torch.no_grad(), _Countable(), Alive(self._all_tensors(), "meta") as alive:
            picture = vae.decode(latents.to(vae.dtype)).sample
            del latents
            (picture.float() / 2 + 0.5).clamp(0, 1)
        return int(alive.peak)

    def encode(self, work: Work, *, tiling: bool = False) -> int:
        """Most bytes alive while the VAE encodes the photo, without weights."""
        vae = self._parts["vae"]
        photo = torch.empty(1, 3, work.size_wh[1], work.size_wh[0], dtype=vae.dtype, device="meta")
        with _tiled(vae, tiling), torch.no_grad(), _Countable(), Alive(self._all_tensors(), "meta") as alive:
            posterior = vae.encode(photo).latent_dist
            posterior.mean.float()
        return int(alive.peak + _bytes(photo))

    def _inputs(self, work: Work, num_frames: int) -> tuple[Conditioning, Tensor]:
        unet = self._parts["unet"]
        config = unet.config
        text = torch.empty(1, config.num_text_tokens, config.cross_attention_dim, device="meta", dtype=unet.dtype)
        tokens = torch.empty(1, unet.num_image_tokens, config.cross_attention_dim, device="meta", dtype=unet.dtype)
        width, height = work.size_wh
        maps = torch.empty(num_frames, 3, height, width, dtype=torch.uint8, device="meta")
        clip = ConditionMaps(maps, 0.0, 255.0)
        controls = [Control(self._parts["pose_controlnet"], (clip,), 1.0, 0.0, 1.0)]
        if work.face and "face_controlnet" in self._parts:
            controls.append(Control(self._parts["face_controlnet"], (clip, clip), 1.0, 0.0, 1.0))
        reference = self._latents(work, 1)
        return Conditioning(reference, text, text, tokens, tokens, controls), self._latents(work, num_frames)

    def _latents(self, work: Work, num_frames: int) -> Tensor:
        width, height = (side // self._scale_factor for side in work.size_wh)
        channels: int = self._parts["unet"].config.in_channels
        return torch.empty(1, channels, num_frames, height, width, device="meta")

    def _all_tensors(self) -> Iterator[Tensor]:
        for part in self._parts.values():
            yield from part.parameters()
            yield from part.buffers()


class _Countable(TorchFunctionMode):
    """Lets functions that need numbers, or that take other memory on the meta device, be counted.

    Args:
        same: what a comparison of two tensors is to say.
    """

    def __init__(self, *, same: bool = True) -> None:
        super().__init__()
        self._same = same

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.equal:
            return self._same
        if func is F.scaled_dot_product_attention:
            # Fused kernels hold no matrix of weights; their result lies token by token.
            query, _, value = args[:3]
            batch, heads, tokens, _ = query.shape
            return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        return func(*args, **(kwargs or {}))


def clip_copies(scheduler: Any) -> int:
    """How many tensors as large as the clip's latents are alive at once while a clip is denoised.

    Two at least, the latents and what comes of them; more where a scheduler scales what the model is shown, keeps what
    was predicted in earlier steps, or draws noise.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(8)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator()} if "generator" in takes else {}
    cpu = torch.device("cpu")
    with torch.no_grad(), Alive() as alive:
        latents = torch.zeros(1, 1, 64 * STEP_FRAMES, 8, 8)
        for timestep in scheduler.timesteps:
            shown = scale_clip(scheduler, latents, timestep, cpu)
            predicted = torch.zeros_like(shown)
            del shown
            latents = step_clip(scheduler, predicted, timestep, latents, cpu, **extra)
            del predicted
    return int(alive.peak // _bytes(latents))


@contextmanager
def _tiled(vae: Any, on: bool) -> Iterator[None]:
    """Tiling on or off for the duration."""
    before, vae.use_tiling = vae.use_tiling, on
    try:
        yield
    finally:
        vae.use_tiling = before


def _bare(values: list[Tensor]) -> dict[int, Any]:
    """For `copy.deepcopy`: in the place of each tensor one on the meta device."""
    memo: dict[int, Any] = {}
    for value in values:
        bare = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        memo[id(value)] = nn.Parameter(bare, requires_grad=False) if isinstance(value, nn.Parameter) else bare
        memo[id(value)].stored_bytes = stored_bytes(value)
    return memo


def _weight_bytes(part: nn.Module, seen: set[int]) -> int:
    """Bytes of what was not seen before; it is seen from now on."""
    new = {id(value): value for value in (*part.parameters(), *part.buffers()) if id(value) not in seen}
    seen.update(new)
    return sum(map(_bytes, new.values()))


def _bytes(value: Tensor) -> int:
    stored: int | None = getattr(value, "stored_bytes", None)  # of what a weight on the meta device stands for
    return value.numel() * value.element_size() if stored is None else stored
