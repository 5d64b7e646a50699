"""A pipeline folder -> official files, the way back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xdyna.checkpoints import layout
from xdyna.checkpoints.assemble import Report
from xdyna.checkpoints.convert import new_folder
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
    Rule,
    image_sites,
    to_official,
)
from xdyna.checkpoints.stock import weights_file
from xdyna.checkpoints.tensor_files import TensorFile
from xdyna.errors import UserError

#: Parts of SD1.5 that a pipeline folder keeps unchanged, and where the official layout has them.
_COPIED = {
    "vae": f"{layout.SD15}/vae",
    "text_encoder": f"{layout.SD15}/text_encoder",
    "tokenizer": f"{layout.SD15}/tokenizer",
    "feature_extractor": f"{layout.SD15}/feature_extractor",
    "image_encoder": layout.IMAGE_ENCODER,
}


def export_official(
    folder: Path,
    out_folder: Path,
    *,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    overwrite: bool = False,
) -> Report:
    """Write the official files (README's layout) from a pipeline folder.

    A checkpoint is gathered in memory before it is written, as torch's archive needs it: the peak is about the size
    of the largest file written.

    Args:
        folder: a folder with `unet/`, `dynamics_adapter/`, `image_prompt/`, `pose_controlnet/`, `face_controlnet/`.
        out_folder: to write; made under a temporary name and renamed when complete.
        dtype: cast floating point tensors to it; None keeps each as it is stored.
        on_progress: called with the file's name, how many are done, of how many.
        overwrite: replace an existing folder.
    Raises:
        UserError: not such a folder, or a file in it is damaged.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder}: no model_index.json; wanted a pipeline folder made by `xdyna convert`")
    jobs: list[tuple[str, Callable[[Path, Report], None]]] = []
    if (folder / UNET).is_dir():
        jobs.append((layout.UNET_FILE, lambda out, report: _export_unet(folder, out, dtype, report)))
    for name, target, rules in ((POSE, layout.POSE_FILE, POSE_RULES), (FACE, layout.FACE_FILE, FACE_RULES)):
        if (folder / name).is_dir():
            jobs.append((target, _controlnet_job(folder, name, target, rules, dtype)))
    if (folder / IMAGE_PROMPT).is_dir():
        jobs.append((layout.IP_ADAPTER_FILE, lambda out, report: _export_image_prompt(folder, out, dtype, report)))
    with new_folder(out_folder, overwrite, jobs[0][0] if jobs else layout.SD15, [folder]) as out:
        report = Report(out_folder)
        for done, (target, job) in enumerate(jobs):
            if on_progress:
                on_progress(f"write {Path(target).name}", done, len(jobs))
            job(out, report)
        for name, target in _COPIED.items():
            if (folder / name).is_dir():
                shutil.copytree(folder / name, out / target)
        if on_progress:
            on_progress("write", len(jobs), len(jobs))
    return report


def official_tensors(
    file: TensorFile, component: str, rules: Sequence[Rule], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The official names and values of a component's tensors.

    Raises:
        UserError: a tensor whose name no rule knows, or a part of a joined tensor is missing.
    """
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key in file:
        sources = to_official(component, key, rules)
        if not sources:
            continue
        tensor = file.read(key)
        tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        for source in sources:
            if source.parts == 1:
                out[source.official] = tensor
                continue
            pieces = parts.setdefault(source.official, {})
            pieces[source.part] = tensor
            if len(pieces) == source.parts:
                del parts[source.official]
                out[source.official] = torch.cat([pieces[i] for i in range(source.parts)])
    if parts:
        raise UserError(f"{file.path}: only a part of {', '.join(sorted(parts))} is there; wanted all parts")
    return out


def _component_file(folder: Path, name: str) -> TensorFile:
    path = weights_file(folder / name)
    if path is None:
        raise UserError(f"{folder / name}: no weights in it; wanted diffusion_pytorch_model.safetensors")
    return TensorFile(path, clean=False)


def _write(tensors: Mapping[str, Any], path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(tensors), path)
    report.count(path.name, "written", sum(len(v) if isinstance(v, dict) else 1 for v in tensors.values()))


def _export_unet(folder: Path, out: Path, dtype: torch.dtype | None, report: Report) -> None:
    state: dict[str, Tensor] = {}
    for name in (UNET, DYNAMICS, IMAGE_PROMPT):
        if (folder / name).is_dir():
            state |= official_tensors(_component_file(folder, name), name, UNET_RULES, dtype)
    _write({"state_dict": state}, out / layout.UNET_FILE, report)


def _controlnet_job(
    folder: Path, name: str, target: str, rules: Sequence[Rule], dtype: torch.dtype | None
) -> Callable[[Path, Report], None]:
    def job(out: Path, report: Report) -> None:
        state = official_tensors(_component_file(folder, name), name, rules, dtype)
        _write({"state_dict": state}, out / target, report)

    return job


def _export_image_prompt(folder: Path, out: Path, dtype: torch.dtype | None, report: Report) -> None:
    """Resampler and image-prompt layers, numbered as IP-Adapter files number them."""
    file = _component_file(folder, IMAGE_PROMPT)
    layers = official_tensors(file, IMAGE_PROMPT, UNET_RULES, dtype)
    numbers = {site: 2 * index + 1 for index, site in enumerate(image_sites(layers))}
    numbered: dict[str, Tensor] = {}
    for site, number in numbers.items():
        for leaf in ("to_k_ip.weight", "to_v_ip.weight"):
            numbered[f"{number}.{leaf}"] = layers[f"{site}.{leaf}"]
    tensors = {"image_proj": official_tensors(file, IMAGE_PROMPT, RESAMPLER_RULES, dtype), "ip_adapter": numbered}
    _write(tensors, out / layout.IP_ADAPTER_FILE, report)
