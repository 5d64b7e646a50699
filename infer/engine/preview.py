"""Pictures of a clip while it is denoised: a strip of frames beside the output, made from each step's prediction.

The prediction is read, never changed, and nothing random is drawn: the result's bytes are the same without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xdyna.denoise import Conditioning, Predictor
from xdyna.errors import UserError
from xdyna.infer.engine.fit import is_out_of_memory
from xdyna.infer.engine.long import signal_and_noise
from xdyna.infer.engine.small_decoder import load_small_decoder
from xdyna.latents import to_clean
from xdyna.photo import write_png
from xdyna.unet import XDynaUNet
from xdyna.video import side_by_side

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from xdyna.configs.animate import AnimateConfig
    from xdyna.pipeline import XDynaPipeline

Image = NDArray[np.uint8]
#: Latents [1, C, n, h, w] and the job's conditioning to n pictures, uint8 [H, W, 3].
Decode = Callable[[Tensor, Conditioning], list[Image]]

#: Frames shown, evenly spread over the clip, and the height they are shown at, pixels.
FRAMES = 8
HEIGHT_PX = 256
#: The VAE, which takes its time, shows about this many pictures in a job.
VAE_PICTURES = 5
#: Of squared latents: holds the colours of a photo of one colour to what it shows.
_RIDGE = 1e-3

logger = logging.getLogger("xdyna")


class Preview:
    """Shows a job's frames while it is denoised.

    Args:
        path: PNG file to write, again and again, each time whole.
        decode: from clean latents to pictures.
        by: what decodes, for the caption.
        scheduler: of the pipeline; says what a prediction means.
        every: steps between two pictures; the last step is always shown.
        metadata: of the PNG file.
    Attributes:
        num_written: pictures written.
        seconds: that they took.
    """

    def __init__(
        self, path: Path, decode: Decode, by: str, scheduler: Any, every: int, metadata: dict[str, str] | None = None
    ) -> None:
        self.path, self.by, self.every = path, by, every
        self.num_written, self.seconds = 0, 0.0
        self._decode, self._scheduler, self._metadata = decode, scheduler, metadata or {}
        self._goes = True

    def predictor(self, inner: Predictor) -> Predictor:
        """The same predictions, shown."""

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
            predicted = inner(
                unet, latents, timestep, conditioning, windows, weights, guidance_scale,
                step=step, num_steps=num_steps, window_batch=window_batch,
            )  # fmt: skip
            if self._goes and ((step + 1) % self.every == 0 or step + 1 == num_steps):
                self._show(predicted, latents, timestep, conditioning, f"step {step + 1} of {num_steps}")
            return predicted

        return predict

    def finish(self) -> None:
        """Remove the picture: the result is there."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        pictures = "1 picture" if self.num_written == 1 else f"{self.num_written} pictures"
        logger.info("preview: %s by %s took %.2f s", pictures, self.by, self.seconds)

    def _show(
        self, predicted: Tensor, latents: Tensor, timestep: Tensor, conditioning: Conditioning, where: str
    ) -> None:
        """Write a picture; where that cannot be done, warn once and show no more: the job is what counts."""
        began_s = time.perf_counter()
        chosen = shown_frames(predicted.shape[2])
        kind = self._scheduler.config.prediction_type
        signal, noise = signal_and_noise(self._scheduler, timestep)
        try:
            clean = to_clean(kind, predicted[:, :, chosen], latents[:, :, chosen], signal, noise)
            frames = self._decode(clean.nan_to_num(), conditioning)
            write_png(self.path, captioned(frames, f"{where}, {self.by}"), self._metadata)
            self.num_written += 1
        except UserError as error:
            self._stop(str(error))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._stop("no memory for it; take --set preview_with=linear")
        self.seconds += time.perf_counter() - began_s

    def _stop(self, reason: str) -> None:
        self._goes = False
        logger.warning("preview: %s; the job goes on without pictures", reason)


def open_preview(
    pipe: XDynaPipeline,
    config: AnimateConfig,
    path: Path,
    reference: Image,
    decoder: AutoencoderTiny | None = None,
    metadata: dict[str, str] | None = None,
) -> Preview | None:
    """The preview that a config asks for, if any.

    Args:
        pipe: on its device, with the job's scheduler.
        config: with preset and model's defaults filled in.
        path: PNG file to write.
        reference: the photo as the model sees it, uint8 [H, W, 3].
        decoder: that decodes the result in the VAE's place; it decodes the preview too, unless the config says how.
        metadata: of the pictures.
    Raises:
        UserError: a decoder that does not fit.
    """
    if not config.preview:
        return None
    how, every = config.preview_with, config.preview_every
    if isinstance(how, Path):
        decoder = load_small_decoder(how, pipe, "--set preview_with")
    if how == "linear" or (how is None and decoder is None):
        linear = LinearColours(reference, config.sampling().size_wh)
        return Preview(path, linear, "a linear guess from the latents", pipe.scheduler, every or 1, metadata)
    by, used = ("the VAE", None) if how == "vae" else ("the small decoder", decoder)
    if every is None:
        every = max(1, config.sampling().steps // VAE_PICTURES) if how == "vae" else 1

    def decode(latents: Tensor, conditioning: Conditioning) -> list[Image]:
        frames = pipe.decode_frames(latents, 1, used)
        return [_pixels(frame)[0] for frame in frames]

    return Preview(path, decode, by, pipe.scheduler, every, metadata)


class LinearColours:
    """Pictures as a linear function of the latents, pixel by pixel, fitted on a photo and its latents.

    Latents of an autoencoder hold, among other things, a small blurred picture; what is linear in it is found by ridge
    regression on the job's own photo, so any VAE will do, and no constants of a particular one are needed.

    Args:
        photo: uint8 [H, W, 3].
        size_wh: of the pictures, pixels.
    """

    def __init__(self, photo: Image, size_wh: tuple[int, int]) -> None:
        self._photo, self._size_wh = photo, size_wh
        self._matrix: Tensor | None = None  # [C + 1, 3]

    def __call__(self, latents: Tensor, conditioning: Conditioning) -> list[Image]:
        """[1, C, n, h, w] to n pictures, uint8 [height, width, 3]."""
        if self._matrix is None:
            self._matrix = fit_colours(conditioning.reference_latents, self._photo)
        colours = _with_one(latents[0].movedim(0, -1)) @ self._matrix.to(latents)  # [n, h, w, 3]
        width, height = self._size_wh
        large = F.interpolate(colours.movedim(-1, 1), size=(height, width), mode="bicubic", align_corners=False)
        return list(_pixels(large.clamp(0, 1)))


def fit_colours(latents: Tensor, photo: Image) -> Tensor:
    """The matrix [C + 1, 3] by which latents (and 1) come nearest a photo's colours, 0..1.

    Args:
        latents: of the photo, [1, C, 1, h, w].
        photo: uint8 [H, W, 3].
    """
    pixels = torch.from_numpy(np.ascontiguousarray(photo)).movedim(-1, 0)[None].float() / 255
    wanted = F.interpolate(pixels, size=latents.shape[-2:], mode="area")[0].flatten(1).T.double()  # [h*w, 3]
    mean = wanted.mean(0)
    known = _with_one(latents[0, :, 0].flatten(1).T.double().cpu())  # [h*w, C + 1]
    square = known.T @ known / len(known)
    # What the latents do not tell is the mean colour, not black.
    held = _RIDGE * torch.diag(torch.cat([square.diagonal()[:-1], square.new_zeros(1)]))
    matrix = torch.linalg.solve(square + held + 1e-9 * torch.eye(len(square)), known.T @ (wanted - mean) / len(known))
    matrix[-1] += mean
    found: Tensor = matrix.float()
    return found


def shown_frames(num_frames: int) -> list[int]:
    """Up to `FRAMES` frames of a clip, the first and the last among them."""
    count = min(FRAMES, num_frames)
    return sorted({round(float(place)) for place in np.linspace(0, num_frames - 1, count)})


def captioned(frames: Sequence[Image], caption: str) -> Image:
    """Frames in a row, with a line of text below: uint8 [H, W, 3]."""
    import cv2

    row = side_by_side(frames, min(HEIGHT_PX, frames[0].shape[0]))
    wide = max(row.shape[1], 9 * len(caption) + 12)
    sheet = np.zeros((row.shape[0] + 24, wide, 3), np.uint8)
    sheet[: row.shape[0], : row.shape[1]] = row
    place = (6, sheet.shape[0] - 8)
    cv2.putText(sheet, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet


def _with_one(values: Tensor) -> Tensor:
    """[.., C] -> [.., C + 1]"""
    return torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)


def _pixels(frames: Tensor) -> Image:
    """[n, 3, H, W], 0..1, to uint8 [n, H, W, 3]."""
    return np.asarray((frames.float() * 255).round().byte().permute(0, 2, 3, 1).cpu())
