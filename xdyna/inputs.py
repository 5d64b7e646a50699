"""What callers may pass to the pipeline, checked and brought into one form. Sizes are (width, height) in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xdyna.latents import MIN_LATENT_SIDE
from xdyna.preprocess.crop import fit, ratio_crop


@dataclass(frozen=True)
class SizeLimits:
    """Sizes a model takes: each side a multiple of `multiple`, within the limits if there are any."""

    multiple: int
    min_wh: tuple[int, int]
    max_wh: tuple[int, int] | None = None

    @classmethod
    def build(cls, config: Mapping[str, Any] | None, vae_scale_factor: int) -> SizeLimits:
        """From a pipeline's `size_limits` (`None`: any multiple of 8 that the latents' blur can handle).

        Raises:
            ValueError: other keys than min_wh, max_wh and multiple, or values that make no sense.
        """
        smallest = MIN_LATENT_SIDE * vae_scale_factor
        if config is None:
            return cls(math.lcm(8, vae_scale_factor), (smallest, smallest))
        if set(config) != {"min_wh", "max_wh", "multiple"}:
            raise ValueError(f"size_limits has keys {sorted(config)}, wanted max_wh, min_wh and multiple")
        multiple = int(config["multiple"])
        min_wh, max_wh = ((int(config[key][0]), int(config[key][1])) for key in ("min_wh", "max_wh"))
        if multiple < 1 or multiple % vae_scale_factor:
            raise ValueError(f"size_limits: multiple is {multiple}, wanted a multiple of the VAE's {vae_scale_factor}")
        if min(min_wh) < smallest or min_wh[0] > max_wh[0] or min_wh[1] > max_wh[1]:
            raise ValueError(f"size_limits: {min_wh} to {max_wh}, wanted {smallest} px or more, the smaller size first")
        return cls(multiple, min_wh, max_wh)

    def round_down(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """The largest size that fits the multiple and is no larger."""
        width, height = (side // self.multiple * self.multiple for side in size_wh)
        return width, height

    def check(self, size_wh: tuple[int, int]) -> None:
        """Raise ValueError, naming the sizes the model takes, for any other."""
        fits = all(side % self.multiple == 0 for side in size_wh)
        fits = fits and all(side >= least for side, least in zip(size_wh, self.min_wh, strict=True))
        if self.max_wh is not None:
            fits = fits and all(side <= most for side, most in zip(size_wh, self.max_wh, strict=True))
        if not fits:
            raise ValueError(f"width x height is {size_wh[0]}x{size_wh[1]}, this model takes {self}")

    def __str__(self) -> str:
        up_to = "and up" if self.max_wh is None else f"to {self.max_wh[0]}x{self.max_wh[1]}"
        return f"{self.min_wh[0]}x{self.min_wh[1]} {up_to}, both sides multiples of {self.multiple}"


def picture(image: Any, name: str) -> Image.Image:
    """A photo in any accepted form as an RGB PIL image.

    Args:
        image: PIL image, uint8 [H, W, 3] (numpy or torch), or float tensor [3, H, W] or [1, 3, H, W] in 0..1.
        name: of the argument, for messages.

    Raises:
        ValueError: anything else.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, Tensor) and image.is_floating_point():
        return Image.fromarray((_float_photo(image, name) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
    if isinstance(image, (np.ndarray, Tensor)):
        array = np.asarray(image)
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
            return Image.fromarray(array)
    raise ValueError(f"{name} is {describe(image)}; wanted a PIL image, uint8 [H, W, 3] or a float tensor [3, H, W]")


def photo_tensor(image: Any, size_wh: tuple[int, int], name: str = "reference") -> Tensor:
    """A photo as the VAE takes it: float32 [1, 3, H, W], -1..1.

    A picture of another size is cut to the ratio about its centre and resized; a float tensor must have the size
    already.

    Raises:
        ValueError: a form that `picture` does not take, or a float tensor of another size.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        photo = _float_photo(image, name)
        if (photo.shape[2], photo.shape[1]) != size_wh:
            raise ValueError(f"{name} is {describe(image)}; wanted width, height {size_wh}: only pictures are resized")
        return photo[None] * 2 - 1
    pixels = np.array(picture(image, name))
    if (pixels.shape[1], pixels.shape[0]) != size_wh:
        pixels = fit(pixels, ratio_crop((pixels.shape[1], pixels.shape[0]), size_wh), size_wh)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@overload
def shaped(value: Tensor, shape: Sequence[int], name: str, *, with_reference: bool = ...) -> Tensor: ...
@overload
def shaped(value: None, shape: Sequence[int], name: str, *, with_reference: bool = ...) -> None: ...
def shaped(value: Tensor | None, shape: Sequence[int], name: str, *, with_reference: bool = False) -> Tensor | None:
    """Check a tensor's shape; with `with_reference` also take one frame more (dimension 2), and drop that first frame.

    Raises:
        ValueError: another shape or not a tensor.
    """
    if value is None:
        return None
    longer = [*shape]
    if with_reference:
        longer[2] += 1
    if isinstance(value, Tensor) and list(value.shape) == longer:
        return value[:, :, 1:] if with_reference else value
    if isinstance(value, Tensor) and list(value.shape) == list(shape):
        return value
    also = f" or, with the reference frame first, {longer}" if with_reference else ""
    raise ValueError(f"{name} is {describe(value)}; wanted a tensor {list(shape)}{also}")


def pair(value: Any, name: str) -> tuple[float, float]:
    """One number for both ControlNets, or one for each (pose, face).

    Raises:
        ValueError: neither.
    """
    values = (value, value) if isinstance(value, Real) else value
    if isinstance(values, (list, tuple)) and len(values) == 2 and all(isinstance(v, Real) for v in values):
        return float(values[0]), float(values[1])
    raise ValueError(f"{name} is {value!r}, wanted a number or a pair (pose, face)")


def finite(value: Any, name: str, low: float = -math.inf) -> float:
    """A finite number of at least `low`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < low:
        least = "" if low == -math.inf else f" of at least {low:g}"
        raise ValueError(f"{name} is {value!r}, wanted a finite number{least}")
    return float(value)


def count(value: Any, name: str, low: int = 1) -> int:
    """A whole number of at least `low`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name} is {value!r}, wanted a whole number of at least {low}")
    return int(value)


def describe(value: Any) -> str:
    """Type, and shape if there is one, for messages."""
    if isinstance(value, (np.ndarray, Tensor)):
        return f"a {type(value).__name__} {list(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"


def _float_photo(image: Tensor, name: str) -> Tensor:
    """float32 [3, H, W], 0..1."""
    photo = image[0] if image.ndim == 4 and len(image) == 1 else image
    if photo.ndim != 3 or photo.shape[0] != 3 or not photo.numel():
        raise ValueError(f"{name} is {describe(image)}; wanted [3, H, W]")
    if not (photo.min() >= 0 and photo.max() <= 1):
        raise ValueError(f"{name} spans {float(photo.min()):g} to {float(photo.max()):g}, wanted 0..1")
    return photo.float()
