"""The files of a drawn clip: the video and everything known about it, written a few frames at a time."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, dressed_as, face_swapped, render
from xdyna.data.synthetic.expression import EXPRESSIONS
from xdyna.data.synthetic.flow import clip_flow, scene_motion_mask
from xdyna.files import make_folder, written_whole
from xdyna.photo import write_png
from xdyna.preprocess.draw import draw_pose_maps
from xdyna.preprocess.face import face_maps
from xdyna.preprocess.tracks import Tracks
from xdyna.video import VideoWriter

CHUNK = 16  # frames that are drawn at a time
SCENES = "scenes"  # folder of the clips that show nobody

OnFrames = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """What is written beside the video.

    Attributes:
        maps: pose maps, face maps and the person's mask as videos.
        swapped: also the face maps of another person's face with the same expressions.
        flow: the motion from frame to frame.
        drive: number of the clip whose dance and expressions everybody follows; None: each person its own.
    """

    maps: bool = True
    swapped: bool = False
    flow: bool = True
    drive: int | None = None


def write_clip(
    folder: Path,
    world: World,
    index: int,
    num_frames: int,
    wanted: Wanted = Wanted(),
    on_frames: OnFrames = lambda count: None,
) -> list[Path]:
    """Draw clip number `index` of a world and write its files; each appears whole or not at all, the video last.

    Args:
        folder: made if missing; a clip without a person goes into its sub-folder `scenes`.
        world: where the clip is from.
        index: its number.
        num_frames: its length.
        wanted: what is written beside the video.
        on_frames: told how many more frames are drawn.

    Returns:
        The files, the video first.

    Raises:
        UserError: the folder or a file in it cannot be written.
    """
    spec = clip_spec(world, index)
    if wanted.drive is not None:
        spec = dressed_as(clip_spec(world, wanted.drive), spec)
    other = face_swapped(spec, np.random.default_rng([world.seed, index, 4]))
    files = _names(folder if spec.person else folder / SCENES, f"clip-{index:05d}", spec, wanted)
    size_wh, fps = world.size_wh, world.fps
    parts: list[Clip] = []
    with ExitStack() as stack:  # closes in reverse order: the video appears when all else is there
        videos = {
            kind: stack.enter_context(VideoWriter(path, size_wh, fps))
            for kind, path in files.items()
            if path.suffix == ".mp4"
        }
        flow = stack.enter_context(FlowFile.opened(files["flow.npz"], num_frames, size_wh)) if wanted.flow else None
        for first in range(0, num_frames, CHUNK):
            times_s = np.arange(first, min(first + CHUNK, num_frames)) / fps
            clip = render(spec, times_s, size_wh, fps)
            _write_videos(
                videos, clip, render(other, times_s, size_wh, fps) if wanted.swapped and spec.person else None
            )
            if flow is not None:
                before = np.arange(max(first - 1, 0), first) / fps
                flow.write(*clip_flow(spec, np.concatenate([before, times_s]), size_wh))
            if not first:
                write_png(files["png"], clip.frames[0])
            parts.append(replace(clip, frames=clip.frames[:0], masks=clip.masks[:0]))
            on_frames(len(times_s))
        _write_knowledge(files, world, spec, parts)
        numbers = {"seed": world.seed, "index": index, "drive": wanted.drive, "num_frames": num_frames, "fps": fps}
        about = {**numbers, "size_wh": size_wh, "scene": spec.scene, "loop_s": spec.loop_s, "person": spec.person}
        with written_whole(files["json"]) as part:
            part.write_text(json.dumps(about, indent=1) + "\n")
    return list(files.values())


def _names(folder: Path, name: str, spec: ClipSpec, wanted: Wanted) -> dict[str, Path]:
    """The clip's files by what follows its name; their folder is made."""
    make_folder(folder)
    kinds = ["mp4", "png", "json", "tracks.npz", "expression.npz", "moving.png"]
    kinds += ["flow.npz"] if wanted.flow else []
    kinds += ["pose.mp4", "mask.mp4", "face_local.mp4", "face_global.mp4"] if wanted.maps and spec.person else []
    kinds += ["swapped.face_local.mp4", "swapped.face_global.mp4"] if wanted.swapped and spec.person else []
    return {kind: folder / f"{name}.{kind}" for kind in kinds}


def _write_videos(videos: dict[str, VideoWriter], clip: Clip, other: Clip | None) -> None:
    """Add the frames of a piece of the clip, and their maps, to the open videos."""
    pictures: dict[str, Iterable[NDArray[np.uint8]]] = {"mp4": clip.frames}
    if "pose.mp4" in videos:
        local, whole = zip(*face_maps(clip.frames, clip.tracks), strict=True)
        pictures |= {"pose.mp4": draw_pose_maps(clip.tracks, clip.tracks.size_wh)}
        pictures |= {"mask.mp4": (np.repeat(mask[..., None], 3, -1) for mask in clip.masks)}
        pictures |= {"face_local.mp4": local, "face_global.mp4": whole}
    if other is not None:
        local, whole = zip(*face_maps(other.frames, other.tracks), strict=True)
        pictures |= {"swapped.face_local.mp4": local, "swapped.face_global.mp4": whole}
    for kind, frames in pictures.items():
        for frame in frames:
            videos[kind].write(frame)


def _write_knowledge(files: dict[str, Path], world: World, spec: ClipSpec, parts: list[Clip]) -> None:
    """Write tracks and expressions of the whole clip, and where its scene moves."""
    arrays = ("joints_xy", "joints_conf", "hands_xy", "hands_conf", "face_xy", "face_conf")
    joined = {name: np.concatenate([getattr(part.tracks, name) for part in parts]) for name in arrays}
    with written_whole(files["tracks.npz"]) as part:
        Tracks(**joined, size_wh=world.size_wh, fps=world.fps).save(part)
    expressions = np.concatenate([clip.expression for clip in parts])
    with written_whole(files["expression.npz"]) as part:
        np.savez_compressed(part, values=expressions, names=np.asarray(EXPRESSIONS))
    moving = np.round(255 * scene_motion_mask(spec, world.size_wh)).astype(np.uint8)
    write_png(files["moving.png"], np.repeat(moving[..., None], 3, -1))


class FlowFile:
    """A compressed `.npz` written frame by frame: `flow` float16 [F-1, H, W, 2] and `valid` bool [F-1, H, W].

    Args:
        path: to write to.
        num_frames: of the clip.
        size_wh: (width, height) of the frames, pixels.
    """

    def __init__(self, path: Path, num_frames: int, size_wh: tuple[int, int]) -> None:
        self._shape = (num_frames - 1, size_wh[1], size_wh[0])
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._flow = self._member("flow", (*self._shape, 2), "<f2")
        self._valid: list[NDArray[np.uint8]] = []  # one bit per pixel: a zip file takes one member after the other

    @classmethod
    @contextmanager
    def opened(cls, path: Path, num_frames: int, size_wh: tuple[int, int]) -> Iterator[FlowFile]:
        """A file that appears at `path` when all frames are written, or not at all."""
        with written_whole(path) as part:
            file = cls(part, num_frames, size_wh)
            yield file
            file.close()

    def _member(self, name: str, shape: tuple[int, ...], kind: str) -> IO[bytes]:
        member = self._file.open(f"{name}.npy", "w", force_zip64=True)
        np.lib.format.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
        return member

    def write(self, flow: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Add frames: flow [N, H, W, 2] and where it is valid [N, H, W]."""
        self._flow.write(flow.astype("<f2").tobytes())
        self._valid += [np.packbits(frame) for frame in valid]

    def close(self) -> None:
        """Finish the file."""
        self._flow.close()
        if len(self._valid) != self._shape[0]:
            raise ValueError(f"got the motion of {len(self._valid)} pairs of frames, wanted {self._shape[0]}")
        with self._member("valid", self._shape, "|b1") as member:
            for bits in self._valid:
                member.write(np.unpackbits(bits, count=self._shape[1] * self._shape[2]).tobytes())
        self._file.close()
