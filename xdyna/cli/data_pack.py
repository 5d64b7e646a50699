"""`xdyna data maps` and `xdyna data pack`: from a folder of videos to training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xdyna.cli.common import ConfigOption, JsonOption, SetOption, announce, emit_json, progress
from xdyna.cli.source_options import DetectorOption, FaceOption, FpsOption
from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig, read_size
from xdyna.errors import UserError

FolderArgument = Annotated[Path, typer.Argument(help="Folder of videos.", show_default=False)]

_SHOWN = 20  # lines about videos that were left out


def register(app: typer.Typer) -> None:
    """Add the commands to `xdyna data`."""
    app.command()(maps)
    app.command()(pack)


def maps(
    context: typer.Context,
    folder: FolderArgument,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="WxH in pixels; several: each video gets the nearest in shape (default 512x768)."),
    ] = None,
    fps: FpsOption = None,
    detector: DetectorOption = None,
    face: FaceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write pose and face maps beside the videos of a folder, for training.

    Videos that have their maps are passed over. Those in a folder called scenes show nobody and get blank maps.
    NAME.swapped.mp4 is NAME.mp4 with another identity's face.
    """
    sizes = [_size(text) for text in size or ["512x768"]]
    options = {key: context.params[key] for key in ("fps", "detector", "face")}
    settings = load_config(AnimateConfig, config or "infer/auto", overrides or [], values=options)
    from xdyna.infer.prepare_folder import prepare_folder

    with progress(quiet=as_json) as on_progress:
        done = prepare_folder(folder, sizes, settings, on_progress)
    announce(f"{folder}: maps of {len(done.prepared)} videos written, {len(done.ready)} were there")
    _finish(as_json, done.problems, prepared=done.prepared, ready=done.ready)


def pack(
    folder: FolderArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the shards.")] = Path("shards"),
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Megabytes per shard.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Pack videos and their maps into WebDataset shards: clips-000000.tar ..

    Videos are cut to their maps' size and encoded anew so that any moment is reached at once.
    """
    from xdyna.data.pack import pack as run

    with progress(quiet=as_json) as on_progress:
        packed = run(folder, output, shard_mb, on_progress)
    last = len(packed.shards) - 1
    name = "clips-000000.tar" if not last else f"clips-{{000000..{last:06d}}}.tar"
    announce(f"{output / name}: {packed.num_clips} clips")
    _finish(as_json, packed.problems, shards=packed.shards, clips=packed.num_clips)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = read_size(text)
    except ValueError:
        raise UserError(f"--size {text}: wanted WxH in pixels, such as 512x768") from None
    if min(width, height) < 16 or max(width, height) > 8192 or width % 8 or height % 8:
        raise UserError(f"--size {text}: wanted sides of 16 to 8192 pixels that are multiples of 8")
    return width, height


def _finish(as_json: bool, problems: tuple[str, ...], **report: Any) -> None:
    """Tell what was left out, all of it with `--json`."""
    if as_json:
        plain = {
            key: [str(path) for path in value] if isinstance(value, tuple) else value for key, value in report.items()
        }
        emit_json({**plain, "problems": list(problems)})
        return
    for line in problems[:_SHOWN]:
        announce(line)
    if len(problems) > _SHOWN:
        announce(f"and {len(problems) - _SHOWN} more; --json lists all")
