"""`xdyna convert`: official checkpoints into a pipeline folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xdyna.cli.common import (
    ConfigOption,
    DtypeOption,
    JsonOption,
    OnProgress,
    ResumeOption,
    SetOption,
    announce,
    emit_json,
    progress,
)
from xdyna.configs import load_config
from xdyna.configs.convert import ConvertConfig
from xdyna.errors import UserError

FILES = "Files that are not where the official layout has them"


def _file(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=FILES, show_default=False)


def convert(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the official files; with --to official, a pipeline folder. By default what "
            "`xdyna models pull x-dyna` fetched, or the pipeline made of it.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder to write; by default where --model x-dyna looks.", show_default=False
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", help="pipeline or official.")] = "pipeline",
    unet: Annotated[Path | None, _file("--unet", "X-Dyna's UNet checkpoint, complete or partial.")] = None,
    pose_controlnet: Annotated[Path | None, _file("--pose-controlnet", "The pose ControlNet's checkpoint.")] = None,
    face_controlnet: Annotated[
        Path | None, _file("--face-controlnet", "The face ControlNet's checkpoint; may be absent.")
    ] = None,
    ip_adapter: Annotated[Path | None, _file("--ip-adapter", "ip-adapter-plus_sd15.bin.")] = None,
    image_encoder: Annotated[Path | None, _file("--image-encoder", "Folder of the CLIP image encoder.")] = None,
    sd15: Annotated[Path | None, _file("--sd15", "Folder of Stable Diffusion 1.5.")] = None,
    motion: Annotated[Path | None, _file("--motion", "AnimateDiff motion modules, for a partial UNet.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    dtype: DtypeOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn official checkpoints into a folder that `--model` and `XDynaPipeline.from_pretrained` take, and back.

    Heads and norm groups, which a checkpoint does not show, are the official ones unless --config or --set says
    otherwise, e.g. --set unet.num_attention_heads=4.
    """
    if to not in ("pipeline", "official"):
        raise UserError(f"--to {to}: wanted pipeline or official")
    settings = load_config(ConvertConfig, config, overrides or [], values={"dtype": dtype})
    given = {
        "unet": unet,
        "pose_controlnet": pose_controlnet,
        "face_controlnet": face_controlnet,
        "ip_adapter": ip_adapter,
        "image_encoder": image_encoder,
        "sd15": sd15,
        "motion": motion,
    }
    with progress(quiet=as_json) as on_progress:
        if to == "pipeline":
            report = to_pipeline(source, output, given, settings, overwrite, resume, on_progress)
        else:
            report = _to_official(source, output, given, settings, overwrite, on_progress)
    if as_json:
        emit_json(report)


def to_pipeline(
    source: Path | None,
    output: Path | None,
    given: dict[str, Path | None],
    settings: ConvertConfig,
    overwrite: bool,
    resume: bool,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Convert official files; returns what is to be reported."""
    from xdyna.checkpoints import OfficialFiles, convert_official, find_official_files
    from xdyna.models import converted_folder, pulled_folder

    folder = output or converted_folder("x-dyna")
    if resume and (folder / "model_index.json").is_file():
        announce(f"{folder}: converted before, left as it is")
        return {"folder": folder, "resumed": True}
    if source is None and not any(given.values()):
        source = pulled_folder("x-dyna")
        if not source.is_dir():
            raise UserError(
                "nothing to convert: wanted a folder of official files, --unet FILE .., or `xdyna models pull x-dyna`"
            )
    files = (find_official_files(source) if source else OfficialFiles()).with_given(**given)
    for name, path in files.given().items():
        announce(f"{name.replace('_', ' ')}: {path}")
    report = convert_official(
        files,
        folder,
        dtype=_torch_dtype(settings.dtype),
        settings=settings.sections(),
        on_progress=on_progress,
        overwrite=overwrite,
    )
    tensors = sum(sum(origins.values()) for origins in report.tensors.values())
    announce(f"{folder}: {tensors} tensors in {len(report.tensors)} parts, every one accounted for")
    return {"folder": folder, "tensors": report.tensors, "warnings": report.warnings}


def _to_official(
    source: Path | None,
    output: Path | None,
    given: dict[str, Path | None],
    settings: ConvertConfig,
    overwrite: bool,
    on_progress: OnProgress,
) -> dict[str, Any]:
    from xdyna.checkpoints import export_official
    from xdyna.models import converted_folder

    if options := [name for name, path in given.items() if path]:
        raise UserError(f"--{options[0].replace('_', '-')} names a file to read, --to official writes them all")
    if output is None:
        raise UserError("--output is missing: wanted the folder for the official files")
    report = export_official(
        source or converted_folder("x-dyna"),
        output,
        dtype=_torch_dtype(settings.dtype),
        on_progress=on_progress,
        overwrite=overwrite,
    )
    announce(f"{output}: {', '.join(report.tensors)}")
    return {"folder": output, "tensors": report.tensors, "warnings": report.warnings}


def _torch_dtype(name: Literal["auto", "float32", "float16", "bfloat16"]) -> Any:
    import torch

    return None if name == "auto" else getattr(torch, name)
