"""Folders of tiny prepared videos for tests; every frame and map carries its number as a bar code."""

from pathlib import Path

import numpy as np
from clips import Image, make_clip, numbered_frame

SIZE_WH = (96, 64)
NUM_FRAMES = 24
FPS = 8
FACES = ("face_local", "face_global")


def put_video(
    folder: Path,
    name: str = "a",
    *,
    num_frames: int = NUM_FRAMES,
    size_wh: tuple[int, int] = SIZE_WH,
    maps: tuple[str, ...] = ("pose", *FACES),
    map_wh: tuple[int, int] | None = None,
    map_frames: int | None = None,
    fps: int = FPS,
) -> Path:
    """`NAME.mp4` and its maps, `NAME.KIND.mp4`."""
    path = folder / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_clip(path, num_frames, fps, size_wh)
    for kind in maps:
        make_clip(path.with_name(f"{path.stem}.{kind}.mp4"), map_frames or num_frames, fps, map_wh or size_wh)
    return path


def plain(value: int) -> Image:
    """A grey frame."""
    return np.full((SIZE_WH[1], SIZE_WH[0], 3), value, np.uint8)


def damage(path: Path, share: float = 0.5) -> None:
    """Cut a file short; what its header promises is not there any more."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


__all__ = ["FACES", "FPS", "NUM_FRAMES", "SIZE_WH", "damage", "numbered_frame", "plain", "put_video"]
