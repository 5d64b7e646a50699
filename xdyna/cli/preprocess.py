"""`xdyna preprocess`: what the model would see, as videos, tracks and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xdyna.cli.common import ConfigOption, DeviceOption, JsonOption, SetOption, announce, emit_json, progress
from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError

DRIVER, MAPS = "Driving video", "Pose, face and alignment"


def _option(flag: str, text: str, panel: str, **more: Any) -> Any:
    return typer.Option(*flag.split(), help=text, rich_help_panel=panel, show_default=False, **more)


def preprocess(
    context: typer.Context,
    ref: Annotated[Path | None, typer.Option("--ref", help="Photo of the person to animate.")] = None,
    pose_video: Annotated[Path | None, typer.Option("--pose-video", help="Video whose motion is followed.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("maps"),
    size: Annotated[str | None, typer.Option("--size", help="WxH in pixels.", show_default="the model's")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose size to take: auto, tiny, x-dyna or a folder.")
    ] = None,
    start: Annotated[
        str | None, _option("--start", "Seconds into the video, or auto: the best pose [0].", DRIVER)
    ] = None,
    fps: Annotated[float | None, _option("--fps", "Sample the video at this rate [its own].", DRIVER)] = None,
    stride: Annotated[int | None, _option("--stride", "Keep every Nth frame; the speed stays [1].", DRIVER)] = None,
    frames: Annotated[int | None, _option("--frames", "At most this many frames [all].", DRIVER)] = None,
    person: Annotated[int | None, _option("--person", "Which person, from the left [the biggest].", DRIVER)] = None,
    detector: Annotated[
        str | None, _option("--detector", "auto, mediapipe, dwpose, controlnet-aux or tracks [auto].", MAPS)
    ] = None,
    dwpose_det: Annotated[Path | None, _option("--dwpose-det", "DWPose's people detector, ONNX.", MAPS)] = None,
    dwpose_pose: Annotated[Path | None, _option("--dwpose-pose", "DWPose's pose model, ONNX.", MAPS)] = None,
    tracks: Annotated[Path | None, _option("--tracks", "Poses from a .tracks.npz file.", MAPS)] = None,
    pose_maps: Annotated[Path | None, _option("--pose-maps", "A video of drawn skeletons.", MAPS)] = None,
    smooth: Annotated[bool | None, _option("--smooth/--no-smooth", "Smooth the poses over time [on].", MAPS)] = None,
    align: Annotated[str | None, _option("--align", "auto, none, affine or bones [auto].", MAPS)] = None,
    face: Annotated[bool | None, _option("--face/--no-face", "Make face maps [on].", MAPS)] = None,
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
