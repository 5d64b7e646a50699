"""`xdyna preprocess`: what the model would see, as videos, tracks and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xdyna.cli.common import ConfigOption, DeviceOption, JsonOption, SetOption, announce, emit_json, progress
from xdyna.cli.source_options import (
    AlignOption,
    DetectorOption,
    DwposeDetOption,
    DwposePoseOption,
    FaceOption,
    FpsOption,
    FramesOption,
    PersonOption,
    PoseMapsOption,
    PoseVideoOption,
    RefOption,
    SmoothOption,
    StartOption,
    StrideOption,
    TracksOption,
)
from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError


def preprocess(
    context: typer.Context,
    ref: RefOption = None,
    pose_video: PoseVideoOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("maps"),
    size: Annotated[str | None, typer.Option("--size", help="WxH in pixels.", show_default="the model's")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose size to take: auto, tiny, x-dyna or a folder.")
    ] = None,
    start: StartOption = None,
    fps: FpsOption = None,
    stride: StrideOption = None,
    frames: FramesOption = None,
    person: PersonOption = None,
    detector: DetectorOption = None,
    dwpose_det: DwposeDetOption = None,
    dwpose_pose: DwposePoseOption = None,
    tracks: TracksOption = None,
    pose_maps: PoseMapsOption = None,
    smooth: SmoothOption = None,
    align: AlignOption = None,
    face: FaceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the model would see, without running it.

    Writes into the folder: NAME.sheet.png (one picture of everything), NAME.pose.mp4, NAME.face_local.mp4,
    NAME.face_global.mp4, and NAME.tracks.npz, which --tracks reads.
    """
    if ref is None:
        raise UserError("--ref is missing: wanted the photo of the person to animate")
    options = {key: context.params[key] for key in AnimateConfig.model_fields if key in context.params}
    settings = load_config(AnimateConfig, config or "infer/auto", overrides or [], values=options)
    from xdyna.infer.preprocess import PreprocessJob
    from xdyna.infer.preprocess import preprocess as run

    with progress(quiet=as_json) as on_progress:
        result = run(PreprocessJob(ref, pose_video, output, settings), on_progress)
    announce(result.summary())
    if as_json:
        emit_json(result.report())
