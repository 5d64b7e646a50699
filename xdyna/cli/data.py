"""`xdyna data`: clips of the synthetic world."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from xdyna.cli import data_pack
from xdyna.cli.common import JsonOption, SeedOption, announce, emit_json
from xdyna.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True)
data_pack.register(app)


@app.callback()
def data() -> None:
    """Make training data."""


@app.command()
def synth(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the clips.")] = Path("clips"),
    count: Annotated[int, typer.Option("--count", min=1, help="Number of clips.")] = 4,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames per clip.")] = 36,
    size: Annotated[str, typer.Option("--size", help="WxH in pixels.")] = "384x576",
    fps: Annotated[float, typer.Option("--fps", min=1, help="Frames per second.")] = 15.0,
    scene: Annotated[
        list[str] | None, typer.Option("--scene", help="Kinds of scenes (default all); may be repeated.")
    ] = None,
    first: Annotated[int, typer.Option("--first", min=0, help="Index of the first clip.")] = 0,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw clips of dancing people: NAME.mp4, NAME.png (its first frame) and NAME.tracks.npz (the truth).

    A clip depends on the seed and its index alone.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if not match or not all(16 <= int(side) <= 4096 for side in match.groups()):
        raise UserError(f"--size {size}: wanted WxH with sides of 16 to 4096 pixels, for example 384x576")
    from xdyna.data.synthetic.clips import World, render_index
    from xdyna.data.synthetic.scenes import SCENES
    from xdyna.photo import write_png
    from xdyna.video import VideoWriter

    width, height = (int(side) for side in match.groups())
    world = World(seed or 0, (width, height), fps, tuple(scene) if scene else tuple(SCENES))
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for index in range(first, first + count):
        clip = render_index(world, index, frames)
        path = output / f"clip-{index:05d}.mp4"
        with VideoWriter(path, (width, height), fps) as video:
            for frame in clip.frames:
                video.write(frame)
        write_png(path.with_suffix(".png"), clip.frames[0], {})
        clip.tracks.save(path.with_suffix(".tracks.npz"))
        written.append(path)
        announce(f"{path}: {frames} frames, {fps:g} fps")
    if as_json:
        emit_json({"clips": written})
