"""From a model's name to a pipeline that is ready to run: which folder, why, and what can be wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xdyna
from xdyna.configs import find_preset, load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer.weights_hash import WeightsHash

if TYPE_CHECKING:
    import torch

    from xdyna.pipeline import XDynaPipeline

INDEX = "model_index.json"
#: The model that ships in the package.
EMBEDDED = Path(xdyna.__file__).resolve().parent / "weights" / "tiny"
#: A model folder may carry defaults of its own in a file of this name.
OWN_PRESET = "animate.yaml"
_PIPELINE_CLASS = "XDynaPipeline"


@dataclass(frozen=True)
class ModelChoice:
    """A model folder, and why it was taken.

    Attributes:
        name: `tiny`, `x-dyna`, or the folder's name.
        folder: a folder in the layout of `XDynaPipeline.save_pretrained`.
        reason: for the user, one line.
        preset: name or path of the settings this model runs with by default.
    """

    name: str
    folder: Path
    reason: str
    preset: str | Path

    @property
    def announcement(self) -> str:
        return f"model {self.name}: {self.reason}"

    def defaults(self) -> AnimateConfig:
        """The model's own settings."""
        return load_config(AnimateConfig, self.preset)

    @cached_property
    def index(self) -> dict[str, Any]:
        """What the folder says that the model is made of.

        Raises:
            UserError: it cannot be read.
        """
        return _read_json(self.folder / INDEX)

    def has(self, part: str) -> bool:
        """Whether the model has an optional part, such as `face_controlnet`; known before anything is loaded."""
        named = self.index.get(part)
        return isinstance(named, list) and named[:1] != [None]

    def check_size(self, size_wh: tuple[int, int]) -> bool:
        """Refuse a size that the model does not take, before anything is loaded.

        Returns:
            False where the folder does not say; loading it tells what is wrong with it then.
        Raises:
            UserError: another size than it takes.
        """
        from xdyna.inputs import SizeLimits

        try:
            levels = _read_json(self.folder / "vae" / "config.json")["block_out_channels"]
            limits = SizeLimits.build(self.index.get("size_limits"), 2 ** (len(levels) - 1))
        except (UserError, ValueError, KeyError, TypeError):
            return False
        try:
            limits.check(size_wh)
        except ValueError as error:
            raise UserError(f"--size: {error}; --upscale N enlarges the result") from None
        return True

    @cached_property
    def hashing(self) -> WeightsHash:
        """Begun when it is first asked for: before the weights are loaded, so that it names those that are."""
        return WeightsHash(self.folder)

    @property
    def sha256(self) -> str:
        """One hash over the names and contents of all weight files, in the order of their names.

        Raises:
            UserError: they cannot be read, or were written meanwhile.
        """
        return self.hashing.result()


def choose_model(name: str) -> ModelChoice:
    """Find a model by name: `auto`, `tiny`, `x-dyna`, or a folder.

    Raises:
        UserError: not converted yet, or neither a known name nor a model folder; the message says what to do.
    """
    if name == "tiny":
        return _tiny("the small embedded model, trained on drawn people only: it shows the way, not what X-Dyna can do")
    if name not in ("auto", "x-dyna"):
        return _folder_choice(name)
    from xdyna.models import converted_folder

    official = converted_folder("x-dyna")
    if is_model(official):
        return ModelChoice("x-dyna", official, f"converted official weights in {official}", "infer/x-dyna")
    if name == "x-dyna":
        raise UserError(
            f"model x-dyna: {official} holds no converted weights; `xdyna models pull x-dyna` fetches and converts them"
        )
    return _tiny(f"small, trained on drawn people only; there are no converted official weights in {official}")


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a saved pipeline."""
    return (folder / INDEX).is_file()


def _tiny(reason: str) -> ModelChoice:
    if not is_model(EMBEDDED):
        raise UserError(
            f"model tiny: {EMBEDDED} is missing from this installation; reinstall xdyna or name a --model folder"
        )
    return ModelChoice("tiny", EMBEDDED, reason, "infer/tiny")


def _folder_choice(name: str) -> ModelChoice:
    folder = Path(name).expanduser()
    if not folder.exists():
        raise UserError(f"model {name}: neither auto, tiny, x-dyna nor an existing folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file, wanted a model folder; `xdyna convert` makes one from checkpoints")
    if not is_model(folder):
        raise UserError(f"{folder}: has no {INDEX}, wanted a model folder as `xdyna convert` writes it")
    kind = _read_json(folder / INDEX).get("_class_name")
    if kind != _PIPELINE_CLASS:
        raise UserError(f"{folder}: holds a {kind}, wanted an {_PIPELINE_CLASS}; `xdyna convert` makes one")
    if folder.resolve() == EMBEDDED.resolve():
        return _tiny("the small embedded model")
    own = folder / OWN_PRESET
    preset: str | Path = own if own.is_file() else "infer/x-dyna"
    return ModelChoice(folder.resolve().name, folder, f"the folder {folder}", find_preset(preset))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, wanted a mapping")
    return values


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: got {name!r}, wanted auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        here = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UserError(f"--device: got {name!r}, which is not available here; there is {here}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device: got {name!r}, wanted cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of a name; `auto` is float16 on a GPU and float32 on a CPU, where half precision is slow."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_pipeline(
    choice: ModelChoice, config: AnimateConfig, device: torch.device, dtype: torch.dtype
) -> XDynaPipeline:
    """Load a model's pipeline onto a device, with the scheduler and LoRAs of a config.

    Raises:
        UserError: damaged, incomplete or foreign files, weights that are NaN, weights that are not safetensors, a LoRA
            that does not fit.
    """
    from xdyna.pipeline import XDynaPipeline

    try:
        with quiet_diffusers():
            pipe: XDynaPipeline = XDynaPipeline.from_pretrained(
                choice.folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
    except UserError:
        raise
    except Exception as error:
        # Whatever lies in a user's folder can make diffusers fail in any way; the folder is what to name.
        raise UserError(f"{choice.folder}: not a model that can be loaded: {_first_line(error)}") from error
    _check_weights(pipe, choice.folder)
    if config.scheduler is not None:
        pipe.scheduler = build_scheduler(config.scheduler, pipe.scheduler)
    _load_loras(pipe, config.lora)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Neither progress bars nor log lines from diffusers, which are on by default, while a model loads."""
    from diffusers.utils import logging as diffusers_logging

    verbosity, bar = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # its errors are raised, too, and said in one line
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bar:
            diffusers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _check_weights(pipe: XDynaPipeline, folder: Path) -> None:
    """Refuse weights with NaN or infinity: they would give black frames without a word."""
    for part, name, weight in _weights(pipe):
        if not weight.isfinite().all():
            raise UserError(f"{folder}/{part}: weight {name} holds NaN or infinite values; the file is damaged")


def _weights(pipe: XDynaPipeline) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every parameter of a pipeline: its part, its name in it, and its value."""
    import torch

    for part, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            for name, weight in component.named_parameters():
                yield part, name, weight


#: Schedulers by the name of `AnimateConfig.scheduler`: diffusers' class, and whether it takes models that predict the
#: clean sample itself, not the noise.
SCHEDULERS = {
    "ddim": ("DDIMScheduler", True),
    "ddpm": ("DDPMScheduler", True),
    "pndm": ("PNDMScheduler", False),
    "lms": ("LMSDiscreteScheduler", True),
    "euler": ("EulerDiscreteScheduler", True),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", False),
    "dpm++": ("DPMSolverMultistepScheduler", True),
    "unipc": ("UniPCMultistepScheduler", True),
    "lcm": ("LCMScheduler", True),
}


def build_scheduler(name: str | None, current: Any, spacing: str | None = None) -> Any:
    """Another scheduler over the noise schedule of the model's own.

    Args:
        name: a key of `SCHEDULERS`, None for the same.
        current: the scheduler that the model was saved with.
        spacing: `leading`, `trailing` or `linspace` timesteps; None for the model's.
    Raises:
        UserError: it does not take what this model predicts.
    """
    import diffusers

    changes = {} if spacing is None else {"timestep_spacing": spacing}
    if name is None:
        return type(current).from_config(current.config, **changes) if changes else current
    class_name, takes_samples = SCHEDULERS[name]
    wanted = getattr(diffusers, class_name)
    if current.config.get("prediction_type") == "sample" and not takes_samples:
        others = ", ".join(other for other, (_, takes) in SCHEDULERS.items() if takes)
        raise UserError(
            f"--scheduler {name}: this model predicts the clean sample, which {name} does not take; wanted {others}"
        )
    same = type(current) is wanted and not changes
    return current if same else wanted.from_config(current.config, **changes)


def split_lora(text: str) -> tuple[Path, float]:
    """``FILE:0.8`` into file and scale; the scale is 1 where none is given.

    Raises:
        UserError: a scale that is no number, a missing file, or one that is not safetensors.
    """
    file_text, colon, scale_text = text.rpartition(":")
    scale = 1.0
    # A colon may also belong to the path (a drive letter, a name): it separates a scale only where a number could be.
    if colon and not Path(text).exists() and "/" not in scale_text and "\\" not in scale_text:
        try:
            scale = float(scale_text)
        except ValueError:
            raise UserError(f"--lora {text}: got the scale {scale_text!r}, wanted FILE or FILE:scale") from None
        if not math.isfinite(scale):
            raise UserError(f"--lora {text}: got the scale {scale_text!r}, wanted a finite number")
        text = file_text
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"--lora {path}: no such file")
    if path.suffix != ".safetensors":
        raise UserError(
            f"--lora {path}: got a {path.suffix or 'suffixless'} file, wanted .safetensors (others can hold code)"
        )
    return path, scale


def _load_loras(pipe: XDynaPipeline, texts: tuple[str, ...]) -> None:
    scales: dict[str, float] = {}
    for number, text in enumerate(texts):
        path, scale = split_lora(text)
        try:
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"lora{number}")
        except Exception as error:
            # peft and diffusers have many ways to refuse a file; which file it was is what the user must know.
            raise UserError(f"--lora {path}: does not fit this model: {_first_line(error)}") from error
        for _, name, weight in _weights(pipe):
            if f".lora{number}." in name and not weight.isfinite().all():
                raise UserError(f"--lora {path}: weight {name} holds NaN or infinite values; the file is damaged")
        scales[f"lora{number}"] = scale
    if scales:
        pipe.set_adapters(list(scales), list(scales.values()))
