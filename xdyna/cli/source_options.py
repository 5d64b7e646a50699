"""Options about the files that are read and how poses are found, the same in `animate` and `preprocess`.

Each is named after its key in `AnimateConfig`; None means 'not given'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DRIVER, MAPS = "Driving video", "Pose, face and alignment"


def option(flags: str, text: str, panel: str) -> Any:
    """An option in a panel of the help; its default is told in the text."""
    return typer.Option(*flags.split(), help=text, rich_help_panel=panel, show_default=False)


RefOption = Annotated[Path | None, typer.Option("--ref", help="Photo of the person to animate.")]
PoseVideoOption = Annotated[Path | None, typer.Option("--pose-video", help="Video whose motion is followed.")]

StartOption = Annotated[
    str | None, option("--start", "Seconds into the video, or auto: the best pose (default 0).", DRIVER)
]
FpsOption = Annotated[float | None, option("--fps", "Sample the video at this rate (default: its own).", DRIVER)]
StrideOption = Annotated[int | None, option("--stride", "Keep every Nth frame; the speed stays (default 1).", DRIVER)]
FramesOption = Annotated[int | None, option("--frames", "At most this many frames (default all).", DRIVER)]
PersonOption = Annotated[int | None, option("--person", "Which person, from the left (default: the biggest).", DRIVER)]

DetectorOption = Annotated[
    str | None, option("--detector", "auto, mediapipe, dwpose, controlnet-aux or tracks (default auto).", MAPS)
]
DwposeDetOption = Annotated[Path | None, option("--dwpose-det", "DWPose's people detector, ONNX.", MAPS)]
DwposePoseOption = Annotated[Path | None, option("--dwpose-pose", "DWPose's pose model, ONNX.", MAPS)]
TracksOption = Annotated[Path | None, option("--tracks", "Poses from a .tracks.npz file.", MAPS)]
PoseMapsOption = Annotated[Path | None, option("--pose-maps", "A video of drawn skeletons.", MAPS)]
SmoothOption = Annotated[bool | None, option("--smooth/--no-smooth", "Smooth the poses over time (default on).", MAPS)]
AlignOption = Annotated[str | None, option("--align", "auto, none, affine or bones (default auto).", MAPS)]
FaceOption = Annotated[
    bool | None, option("--face/--no-face", "Follow the face (default on where the model can).", MAPS)
]
