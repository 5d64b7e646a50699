"""`xdyna data`: clips of the synthetic world, and real videos made ready for training."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from xdyna.cli import data_pack
from xdyna.cli.common import JsonOption, SeedOption, announce, emit_json, progress
from xdyna.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True)
data_pack.register(app)

FULL_SIZE_WH = (512, 768)


@app.callback()
def data() -> None:
    """Make training data."""


@app.command()
def synth(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the clips.")] = Path("clips"),
    count: Annotated[int, typer.Option("--count", min=1, help="Number of clips.")] = 4,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames per clip.")] = 36,
    size: Annotated[str | None, typer.Option("--size", help="WxH in pixels (default 384x576).")] = None,
    full_size: Annotated[bool, typer.Option("--full-size", help="512x768, the size of X-Dyna's own model.")] = False,
    fps: Annotated[float, typer.Option("--fps", min=1, max=240, help="Frames per second.")] = 15.0,
    scene: Annotated[
        list[str] | None, typer.Option("--scene", help="Kind of scene (default all); may be repeated.")
    ] = None,
    framing: Annotated[
        list[str] | None, typer.Option("--framing", help="full, half or bust (default a mixture); may be repeated.")
    ] = None,
    loop: Annotated[float, typer.Option("--loop", min=0, help="Scenes repeat after so many seconds; 0: never.")] = 0.0,
    scene_only: Annotated[float, typer.Option("--scene-only", help="Share of clips that show nobody, 0 to 1.")] = 0.0,
    drive: Annotated[
        int | None, typer.Option("--drive", min=0, help="Everybody dances the dance of the clip with this index.")
    ] = None,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Write pose maps, face maps and masks.")] = True,
    swapped: Annotated[
        bool, typer.Option("--swapped", help="Write the face maps of another person's face too.")
    ] = False,
    flow: Annotated[bool, typer.Option("--flow/--no-flow", help="Write the motion from frame to frame.")] = True,
    first: Annotated[int, typer.Option("--first", min=0, help="Index of the first clip.")] = 0,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw clips of dancing people, or of a scene alone, with everything that is known about them.

    Writes NAME.mp4, its first frame NAME.png, maps, tracks, expressions and motion. What a clip shows depends on the
    seed and its index alone.
    """
    size_wh = _size(size, full_size)
    from xdyna.data.synthetic.clips import World
    from xdyna.data.synthetic.scenes import SCENES
    from xdyna.data.synthetic.write import Wanted, write_clip

    world = World(
        seed=42 if seed is None else seed,
        size_wh=size_wh,
        fps=fps,
        scenes=tuple(scene) if scene else tuple(SCENES),
        loop_s=loop,
        scene_only=scene_only,
    )
    if framing:
        world = replace(world, framings=dict.fromkeys(framing, 1.0))
    written: list[list[Path]] = []
    with progress(quiet=as_json) as on_progress:
        done = 0

        def on_frames(more: int) -> None:
            nonlocal done
            on_progress("draw", done := done + more, count * frames)

        for index in range(first, first + count):
            written.append(write_clip(output, world, index, frames, Wanted(maps, swapped, flow, drive), on_frames))
    for files in written:
        announce(f"{files[0]}: {frames} frames, {fps:g} fps")
    if as_json:
        emit_json({"clips": [files[0] for files in written], "files": [path for files in written for path in files]})


def _size(size: str | None, full_size: bool) -> tuple[int, int]:
    """(width, height), pixels."""
    if full_size:
        if size is not None:
            raise UserError(f"--size {size} and --full-size: give one of them")
        return FULL_SIZE_WH
    match = re.fullmatch(r"(\d+)x(\d+)", size or "384x576")
    if not match or not all(16 <= int(side) <= 4096 for side in match.groups()):
        raise UserError(f"--size {size}: wanted WxH with sides of 16 to 4096 pixels, for example 384x576")
    return int(match[1]), int(match[2])
