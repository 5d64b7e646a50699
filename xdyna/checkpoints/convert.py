"""Official files -> one folder that `XDynaPipeline.from_pretrained` opens, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin
from diffusers import __version__ as diffusers_version
from torch import Tensor

from xdyna.adapters.dynamics import DynamicsAdapter
from xdyna.adapters.image_prompt import ImagePromptAdapter
from xdyna.checkpoints import infer_config
from xdyna.checkpoints.assemble import Fallback, Pool, Report, View, plan, refuse_unknown
from xdyna.checkpoints.key_maps import (
    DYNAMICS,
    FACE,
    FACE_RULES,
    IMAGE_PROMPT,
    POSE,
    POSE_RULES,
    RESAMPLER_RULES,
    UNET,
    UNET_RULES,
    VAE,
    VAE_RULES,
    Rule,
    image_sites,
)
from xdyna.checkpoints.layout import OfficialFiles
from xdyna.checkpoints.stock import copy_text_and_image_parts, read_config, weights_file
from xdyna.checkpoints.tensor_files import TensorFile, write_safetensors
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet
from xdyna.errors import UserError
from xdyna.files import PartPath, writing_error
from xdyna.unet import XDynaUNet

INDEX_NAME = "model_index.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
#: The official sampler. Upstream really uses linear betas, not SD1.5's scaled_linear.
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear",
    "steps_offset": 1, "clip_sample": False,
}  # fmt: skip

OnProgress = Callable[[str, int, int], None]
Settings = Mapping[str, Mapping[str, Any]]


def convert_official(
    files: OfficialFiles,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
) -> Report:
    """Write a pipeline folder from official files. What is given is converted; what is not is left out, with a warning.

    One tensor is in memory at a time (files of torch before 1.6 are read whole), so the peak is little more than the
    mapped pages of the largest file.

    Args:
        files: see `OfficialFiles`; at least one of the X-Dyna checkpoints.
        folder: to write; made under a temporary name beside it and renamed when complete.
        dtype: cast floating point tensors to it; None keeps each as it is stored.
        settings: what shapes cannot say, by component: `unet`, `pose_controlnet`, `face_controlnet` (heads, groups),
            `image_prompt` (dim_head). The official values are the default.
        on_progress: called with the component's name, how many parts are done, of how many.
        overwrite: replace an existing folder.
    Raises:
        UserError: a file is unreadable, of another model, incomplete, holds NaN or would run code.
    """
    settings = settings or {}
    infer_config.check_settings(settings, "config")
    if not (files.unet or files.pose_controlnet or files.face_controlnet):
        raise UserError("nothing to convert: wanted at least one of --unet, --pose-controlnet, --face-controlnet")
    steps: list[tuple[str, Callable[[Path, Report], dict[str, Any]]]] = []
    if files.unet or files.motion:
        steps.append((UNET, lambda out, report: _convert_unet(files, out, dtype, settings, report)))
    for name, path, rules, kind in (
        (POSE, files.pose_controlnet, POSE_RULES, PoseControlNet),
        (FACE, files.face_controlnet, FACE_RULES, SFaceControlNet),
    ):
        if path:
            steps.append((name, _controlnet_step(name, path, rules, kind, dtype, settings)))
    if files.sd15 and (files.sd15 / VAE).is_dir():
        vae = files.sd15 / VAE
        steps.append((VAE, lambda out, report: _convert_vae(vae, out, dtype, report)))
    steps.append(
        (
            "text, image",
            lambda out, report: copy_text_and_image_parts(files.sd15, files.image_encoder, out, dtype, report),
        )
    )

    with new_folder(folder, overwrite, INDEX_NAME, files.given().values()) as out:
        report = Report(folder)
        classes: dict[str, Any] = {}
        for done, (name, step) in enumerate(steps):
            if on_progress:
                on_progress(f"convert {name}", done, len(steps))
            classes |= step(out, report)
        DDIMScheduler(**SCHEDULER).save_config(out / "scheduler")
        _write_index(out, {**classes, "scheduler": DDIMScheduler})
        _warn_of_absent(files, classes, report)
        if on_progress:
            on_progress("convert", len(steps), len(steps))
    return report


@contextmanager
def new_folder(folder: Path, overwrite: bool, mark: str, inputs: Iterable[Path]) -> Iterator[Path]:
    """A temporary folder beside `folder` that becomes it at the end, or vanishes on any error.

    Args:
        folder: to write.
        overwrite: replace it where it holds an earlier result.
        mark: a file or folder that such a result has; a folder without it is somebody's own and stays.
        inputs: what is read; a folder that holds any of it stays.
    Raises:
        UserError: `folder` is in the way, or the place cannot be written.
    """
    _check_replaceable(folder, overwrite, mark, inputs)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(folder.parent, error) from error
    part = PartPath(folder, folder=True)
    try:
        yield part.path
    except OSError as error:
        part.discard()
        raise writing_error(folder, error) from error
    except BaseException:
        part.discard()
        raise
    part.commit()


def _check_replaceable(folder: Path, overwrite: bool, mark: str, inputs: Iterable[Path]) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; wanted the name of a new folder")
    if not overwrite:
        raise UserError(f"{folder}: already there and not empty; give another folder, or --overwrite")
    if not (folder / mark).exists():
        raise UserError(f"{folder}: has no {mark}, so no earlier result is in it; --overwrite replaces nothing else")
    place = folder.resolve()
    for path in inputs:
        if path.resolve().is_relative_to(place):
            raise UserError(f"{folder}: holds {path}, which is read; wanted another folder")


def unet_components(config: Mapping[str, Any], resampler: Mapping[str, Any] | None) -> dict[str, ModelMixin]:
    """UNet and adapters without memory behind their tensors: their keys and shapes are what a conversion must fill.

    Raises:
        UserError: settings that do not fit each other.
    """
    try:
        with torch.device("meta"):
            unet = XDynaUNet(**config)
            parts: dict[str, ModelMixin] = {UNET: unet, DYNAMICS: DynamicsAdapter.from_unet(unet)}
            if resampler is not None:
                parts[IMAGE_PROMPT] = ImagePromptAdapter.from_unet(unet, dict(resampler))
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"unet: no model can be built with {dict(config)}: {error}") from None
    return parts


def wanted_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a module saves."""
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@contextmanager
def _naming(pool: Pool) -> Iterator[None]:
    """Put the names of the files in front of what is said about their tensors."""
    try:
        yield
    except infer_config.WrongTensorsError as error:
        raise UserError(f"{pool.paths()}: {error}") from None


def _convert_unet(
    files: OfficialFiles, out: Path, dtype: torch.dtype | None, settings: Settings, report: Report
) -> dict[str, Any]:
    """UNet, Dynamics-Adapter and image prompt, which share the official UNet checkpoint."""
    base = files.sd15 / "unet" if files.sd15 else None
    base_file = weights_file(base) if base else None
    paths = [path for path in (files.unet, files.motion, base_file) if path]
    pool = Pool([View.whole(TensorFile(path)) for path in paths])
    base_settings = read_config(base) if base and (base / "config.json").is_file() else {}
    base_settings = {key: value for key, value in base_settings.items() if not key.endswith("_block_types")}
    with _naming(pool):
        config = infer_config.unet_config(pool.shapes(), base_settings, settings.get("unet", {}))

    resampler, resampler_pool = None, Pool([])
    if files.ip_adapter:
        ip_file = TensorFile(files.ip_adapter)
        resampler_pool = Pool([_image_projection(ip_file)])
        with _naming(resampler_pool):
            resampler = infer_config.resampler_config(resampler_pool.shapes(), settings.get(IMAGE_PROMPT, {}))
        pool.views.append(_numbered_image_layers(ip_file, image_sites(pool.shapes())))
    elif any(key.endswith("_ip.weight") for key in pool.shapes()):
        raise UserError(
            f"{files.unet}: has image-prompt layers, but the Resampler that feeds them is not given; "
            "wanted ip-adapter-plus_sd15.bin (--ip-adapter)"
        )

    parts = unet_components(config, resampler)
    wanted = {name: wanted_shapes(part) for name, part in parts.items()}
    refuse_unknown(pool, wanted, UNET_RULES)
    refuse_unknown(resampler_pool, {IMAGE_PROMPT: wanted.get(IMAGE_PROMPT, {})}, RESAMPLER_RULES)
    for name, part in parts.items():
        layers = {key: shape for key, shape in wanted[name].items() if not key.startswith("resampler.")}
        others = {key: shape for key, shape in wanted[name].items() if key not in layers}
        fallback = _untrained_adapter(pool, report) if name == DYNAMICS else None
        entries = plan(name, layers, pool, UNET_RULES, dtype, report, fallback)
        entries += plan(name, others, resampler_pool, RESAMPLER_RULES, dtype, report)
        _save(part, out / name, entries)
    return {name: type(part) for name, part in parts.items()}


def _image_projection(file: TensorFile) -> View:
    """The Resampler of an IP-Adapter file, or of a file that holds nothing else."""
    prefix = "image_proj."
    names = {key.removeprefix(prefix): key for key in file if key.startswith(prefix)}
    return View(file, names or {key: key for key in file if not key.startswith("ip_adapter.")})


def _numbered_image_layers(file: TensorFile, sites: list[str]) -> View:
    """The image-prompt layers of an IP-Adapter file: numbered 1, 3, 5 .. in the order of the attention processors."""
    prefix = "ip_adapter."
    names: dict[str, str] = {}
    for key in file:
        if key.startswith(prefix):
            number, _, leaf = key.removeprefix(prefix).partition(".")
            index, odd = divmod(int(number), 2) if number.isdigit() else (-1, 0)
            known = bool(odd) and index < len(sites)
            names[f"{sites[index]}.{leaf}" if known else key] = key
    return View(file, names)


def _untrained_adapter(pool: Pool, report: Report) -> Fallback:
    """What a Dynamics-Adapter starts from where a checkpoint lacks it: queries of the host, outputs of zero."""
    said: set[str] = set()

    def warn_once(layer: str, consequence: str) -> None:
        if layer not in said:
            said.add(layer)
            report.warn(f"{pool.paths()}: {layer} of the dynamics adapter is missing; {consequence}")

    def fallback(key: str, shape: tuple[int, ...]) -> tuple[torch.dtype, Callable[[], Tensor], str] | None:
        _, site, leaf = key.split(".", 2)
        host = f"{site.replace('-', '.')}.to_q.weight"
        view = pool.find(host)
        if view is None:
            return None
        stored = view.dtype(host)
        if leaf == "to_q_ref.weight":
            warn_once("to_q_ff", "it starts as a copy of attn1.to_q, as the official code does before training")
            return stored, lambda: view.read(host), "attn1.to_q"
        warn_once("to_out_ff", "set to zero, so the reference frame's appearance does not reach the other frames")
        return stored, lambda: torch.zeros(shape, dtype=stored), "zero"

    return fallback


def _controlnet_step(
    name: str,
    path: Path,
    rules: tuple[Rule, ...],
    kind: type[ModelMixin],
    dtype: torch.dtype | None,
    settings: Settings,
) -> Callable[[Path, Report], dict[str, Any]]:
    def step(out: Path, report: Report) -> dict[str, Any]:
        pool = Pool([View.whole(TensorFile(path))])
        with _naming(pool):
            config = infer_config.controlnet_config(pool.shapes(), settings.get(name, {}))
        try:
            with torch.device("meta"):
                part = kind(**config)
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"{path}: no {name.replace('_', ' ')} can be built of it: {error}") from None
        wanted = wanted_shapes(part)
        refuse_unknown(pool, {name: wanted}, rules)
        _save(part, out / name, plan(name, wanted, pool, rules, dtype, report))
        return {name: kind}

    return step


def _convert_vae(source: Path, out: Path, dtype: torch.dtype | None, report: Report) -> dict[str, Any]:
    path = weights_file(source)
    if path is None or not (source / "config.json").is_file():
        raise UserError(f"{source}: wanted config.json and {WEIGHTS_NAME} of a diffusers VAE")
    config = read_config(source)
    try:
        with torch.device("meta"):
            part = AutoencoderKL.from_config(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{source / 'config.json'}: no VAE can be built of it: {error}") from None
    pool = Pool([View.whole(TensorFile(path, clean=False))])
    rules = VAE_RULES if any(".query." in key for key in pool.shapes()) else VAE_RULES[-1:]
    wanted = wanted_shapes(part)
    refuse_unknown(pool, {VAE: wanted}, rules)
    _save(part, out / VAE, plan(VAE, wanted, pool, rules, dtype, report))
    return {VAE: AutoencoderKL}


def _save(part: ModelMixin, folder: Path, entries: list[Any]) -> None:
    folder.mkdir(parents=True)
    part.save_config(folder)
    write_safetensors(folder / WEIGHTS_NAME, entries)


#: Components of `XDynaPipeline`, in the order of its constructor.
COMPONENTS = (
    "vae", "unet", "scheduler", "pose_controlnet", "face_controlnet", "dynamics_adapter", "image_prompt",
    "text_encoder", "tokenizer", "image_encoder", "feature_extractor", "stored_prompt",
)  # fmt: skip


def _write_index(out: Path, classes: Mapping[str, type[Any]]) -> None:
    """`model_index.json`: the class of every component, and null for those that the pipeline may do without."""
    index: dict[str, Any] = {"_class_name": "XDynaPipeline", "_diffusers_version": diffusers_version}
    for name in COMPONENTS:
        kind = classes.get(name)
        index[name] = [_library(kind), kind.__name__] if kind else [None, None]
    (out / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _library(kind: type[Any]) -> str:
    """The package that `from_pretrained` imports a class from."""
    return kind.__module__.partition(".")[0]


def _warn_of_absent(files: OfficialFiles, classes: Mapping[str, Any], report: Report) -> None:
    """One line when the folder cannot animate by itself."""
    needed = {UNET: "--unet", POSE: "--pose-controlnet", VAE: "--sd15", "text_encoder": "--sd15", "tokenizer": "--sd15"}
    if IMAGE_PROMPT in classes or UNET not in classes:
        needed |= {IMAGE_PROMPT: "--ip-adapter", "image_encoder": "--image-encoder"}
    absent = [f"{name} ({option})" for name, option in needed.items() if name not in classes]
    if absent:
        report.warn(f"{report.folder}: converted without {', '.join(absent)}; it is no complete pipeline yet")
