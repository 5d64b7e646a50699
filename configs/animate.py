"""Settings of one animation; every default of `xdyna animate` is here or in the model's own preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from xdyna.configs import Config, wanted_text
from xdyna.configs.fast import FastConfig, PresetName
from xdyna.errors import UserError

Decided = TypeVar("Decided")

MAX_SIDE_PX = 8192


def read_size(value: Any) -> Any:
    """``"96x128"`` becomes ``(96, 128)``; anything else is left for pydantic to judge."""
    if isinstance(value, str):
        parts = value.lower().replace("×", "x").split("x")
        if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
            raise ValueError("wanted WIDTHxHEIGHT in pixels, such as 96x128")
        return tuple(int(part) for part in parts)
    return value


def _check_size(size_wh: tuple[int, int]) -> tuple[int, int]:
    if not all(1 <= side <= MAX_SIDE_PX for side in size_wh):
        raise ValueError(f"wanted sides of 1 to {MAX_SIDE_PX} pixels")
    return size_wh


def read_dtype(value: Any) -> Any:
    """``"fp16"`` becomes ``"float16"``, and so on."""
    return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(value, value)


def read_batch(value: Any) -> Any:
    """Text other than ``auto`` is a whole number."""
    if isinstance(value, str) and value != "auto":
        try:
            return int(value)
        except ValueError:
            raise ValueError("wanted a whole number, or auto") from None
    return value


def read_vram(value: Any) -> Any:
    """Text other than ``auto`` is a number of GiB."""
    if isinstance(value, str) and value != "auto":
        try:
            return float(value)
        except ValueError:
            raise ValueError("wanted a number of GiB, or auto") from None
    return value


def read_start(value: Any) -> Any:
    """Text other than ``auto`` is a number of seconds."""
    if isinstance(value, str) and value != "auto":
        try:
            return float(value)
        except ValueError:
            raise ValueError("wanted a number of seconds, or auto") from None
    return value


SizeWH = Annotated[tuple[int, int], BeforeValidator(read_size), AfterValidator(_check_size)]
Batch = Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["auto"], BeforeValidator(read_batch)]
Scale = Annotated[float, Field(ge=0.0, le=10.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Sampling(NamedTuple):
    """The settings that every model must decide.

    Attributes:
        size_wh: (width, height) of the frames, pixels.
        steps: denoising steps.
        guidance: scale of classifier-free guidance, 1 for none.
        window: driving frames denoised together.
        overlap: driving frames that neighbouring windows share.
    """

    size_wh: tuple[int, int]
    steps: int
    guidance: float
    window: int
    overlap: int


class AnimateConfig(Config):
    """How to animate one photo with one video.

    A field that is None here is decided by the preset of the model that runs (`with_model_defaults`), or, where the
    comment says so, by the input.
    """

    # The model.
    model: str = "auto"  # auto, tiny, x-dyna or a folder
    lora: tuple[str, ...] = ()  # FILE or FILE:scale, applied in this order
    device: str = "auto"
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], BeforeValidator(read_dtype)] = "auto"

    # Sampling.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    size: SizeWH | None = None  # (width, height), pixels
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=1.0, le=100.0)] | None = None
    # None: the scheduler that the model was saved with.
    scheduler: Literal["ddim", "ddpm", "pndm", "lms", "euler", "euler-ancestral", "dpm++", "unipc", "lcm"] | None = None
    prompt: str = ""
    negative_prompt: str = ""
    window: Annotated[int, Field(ge=1)] | None = None  # driving frames
    overlap: Annotated[int, Field(ge=0)] | None = None  # driving frames
    # How the video is cut into windows; None: the model's own way.
    schedule: Literal["open", "closed", "grid"] | None = None

    # How the work is done. Batches change speed and memory, and results only by rounding.
    window_batch: Batch = "auto"  # windows per call of the networks; auto: by free memory
    vae_batch: Batch = "auto"  # frames per call of the VAE; auto: by free memory
    # GiB of the device that may be used; auto: what is free on a GPU, no limit elsewhere (docs/memory.md).
    vram: Annotated[Annotated[float, Field(gt=0.0)] | Literal["auto"], BeforeValidator(read_vram)] = "auto"
    # Weights of the UNet and the ControlNets in 8 bits, through torchao: docs/fast.md.
    quantize: Literal["int8", "fp8"] | None = None
    deterministic: bool = False  # batches of one size: then neither of these changes a byte
    near_reference: bool = False  # the reference once a step where the model's norm is pooled over frames; inexact
    compile: bool = False  # the transformer blocks, by torch.compile: slow first steps, results differ by rounding
    cuda_graphs: bool = False  # calls of the UNet recorded once and launched as a whole; GPUs only

    # What is left out of it: docs/fast.md.
    preset: PresetName = "exact"  # gives what is not said otherwise of steps, scheduler, guidance and `fast`
    fast: FastConfig = FastConfig()
    small_decoder: Path | None = None  # folder of a diffusers `AutoencoderTiny` that decodes in the VAE's place

    # A table and a trace of where time and memory went, beside the output; the result is the same.
    profile: Annotated[bool, Field(exclude=True)] = False

    # Pictures while it runs, beside the output. The result is the same: its record does not tell of them.
    preview: Annotated[bool, Field(exclude=True)] = False
    # A linear guess, the VAE, or the folder of an `AutoencoderTiny`; None: `small_decoder`, else linear.
    preview_with: Annotated[Literal["linear", "vae"] | Path | None, Field(exclude=True)] = None
    # Steps between two pictures; None: 1, or with the VAE a fifth of the steps.
    preview_every: Annotated[Annotated[int, Field(ge=1)] | None, Field(exclude=True)] = None

    # How much each part counts, and over which part of the denoising.
    adapter_scale: Scale = 1.0
    pose_scale: Scale = 1.0
    face_scale: Scale = 1.0
    pose_start: Fraction = 0.0
    pose_end: Fraction = 1.0
    face_start: Fraction = 0.0
    face_end: Fraction = 1.0

    # Long videos: docs/long-video.md.
    # What the frames' start noise shares; None: the model's own way.
    noise: Literal["independent", "shared", "mixed", "shuffled"] | None = None
    anchor: Fraction = 0.0  # how far the slow part of the predicted colours is led to those of `anchor_to`
    anchor_to: Literal["reference", "start"] = "reference"  # the photo's, or the first window's
    steady_colours: bool = False  # lead what goes off slowly back to the first second, in the finished frames

    # The driving video.
    # Seconds; auto: where the pose is nearest the photo's.
    start: Annotated[Annotated[float, Field(ge=0.0)] | Literal["auto"], BeforeValidator(read_start)] = 0.0
    fps: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None  # None: the video's own
    stride: Annotated[int, Field(ge=1)] = 1
    frames: Annotated[int, Field(ge=1)] | None = None  # None: to the end

    # Its pose and face.
    detector: Literal["auto", "mediapipe", "dwpose", "controlnet-aux", "tracks"] = "auto"
    dwpose_det: Path | None = None  # DWPose's people detector and pose model, ONNX files
    dwpose_pose: Path | None = None
    tracks: Path | None = None
    pose_maps: Path | None = None
    person: Annotated[int, Field(ge=1)] | None = None  # counted from the left in the first frame; None: the biggest
    smooth: bool = True
    align: Literal["auto", "none", "affine", "bones"] = "auto"
    face: bool | None = None  # None: where the model has a face ControlNet
    official_maps: bool = False  # face maps and cropping with the official code's quirks

    # The result.
    codec: str = "h264"
    audio: bool = True
    compare: bool = False
    watermark: str | None = None
    upscale: Annotated[int, Field(ge=1, le=16)] = 1
    save_maps: Path | None = None

    @property
    def dwpose_files(self) -> tuple[Path, Path] | None:
        """Both of DWPose's files, or None."""
        if self.dwpose_det is None or self.dwpose_pose is None:
            return None
        return self.dwpose_det, self.dwpose_pose

    @field_validator("lora", mode="before")
    @classmethod
    def _one_lora(cls, value: Any) -> Any:
        """A single text stands for a list of one."""
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_together(self) -> AnimateConfig:
        if self.window is not None and self.overlap is not None and self.overlap >= self.window:
            raise ValueError(f"wanted an overlap ({self.overlap}) smaller than the window ({self.window})")
        for name in ("pose", "face"):
            start, end = getattr(self, f"{name}_start"), getattr(self, f"{name}_end")
            if start >= end:
                raise ValueError(f"wanted {name}_start ({start}) before {name}_end ({end})")
        for name in ("preview_with", "preview_every"):
            if getattr(self, name) is not None and not self.preview:
                raise ValueError(f"{name} ({getattr(self, name)}) changes nothing without --preview")
        if self.detector == "tracks" and self.tracks is None:
            raise ValueError("detector 'tracks' wants a tracks file (--tracks FILE)")
        return self

    def sampling(self) -> Sampling:
        """What must be decided before a model can run.

        Raises:
            UserError: neither this config nor the model's preset decides one of them.
        """

        def decided(name: str, value: Decided | None) -> Decided:
            if value is None:
                raise UserError(
                    f"{name}: the model's own settings leave it open, wanted --{name} or --set {name}=VALUE"
                )
            return value

        return Sampling(
            decided("size", self.size),
            decided("steps", self.steps),
            decided("guidance", self.guidance),
            decided("window", self.window),
            decided("overlap", self.overlap),
        )

    def call_settings(self) -> dict[str, Any]:
        """What a call of the pipeline takes from here, whatever it is called for: keyword -> value.

        Raises:
            UserError: see `sampling`.
        """
        sampling = self.sampling()
        return {
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance,
            "pose_scale": self.pose_scale,
            "face_scale": self.face_scale,
            "adapter_scale": self.adapter_scale,
            "control_guidance_start": (self.pose_start, self.face_start),
            "control_guidance_end": (self.pose_end, self.face_end),
            "window": sampling.window,
            "overlap": sampling.overlap,
            "schedule": self.schedule,
        }

    def with_model_defaults(self, defaults: AnimateConfig) -> AnimateConfig:
        """This config with every None filled from the model's preset; what is still None is decided by the input.

        Raises:
            UserError: what was given and what the model has do not go together, such as a window and an overlap.
        """
        empty = {key for key, value in self if value is None}
        filled = {key: value for key, value in defaults if key in empty and value is not None}
        try:
            return AnimateConfig.model_validate({**dict(self), **filled})
        except ValidationError as error:
            own = ", ".join(f"{key} {value}" for key, value in filled.items())
            raise UserError(f"{wanted_text(error)}; this model's own settings fill in {own}") from None
