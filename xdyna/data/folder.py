"""A folder of videos with precomputed maps beside them, as `xdyna preprocess` and `xdyna data maps` write them.

Beside `NAME.mp4` lie `NAME.pose.mp4`, `NAME.face_local.mp4` and `NAME.face_global.mp4`, and where there are any
`NAME.mask.mp4` and the face maps of the swapped face, `NAME.swapped.face_local.mp4` and `NAME.swapped.face_global.mp4`.
Videos in a folder called `scenes` show nobody and need no maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

from xdyna.data.recorded import FACE_KINDS, MAP_KINDS, MASK, POSE, VIDEO, Cut, RecordedSource, Recording, Recordings
from xdyna.data.source import Face
from xdyna.errors import UserError
from xdyna.video import VideoInfo, probe

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
SCENES = "scenes"  # name of the folders whose videos show nobody
SWAPPED = ".swapped"  # NAME.swapped.mp4: the same video with another identity's face
MAP_SUFFIX = ".mp4"

_SLACK_FRAMES, _SLACK_SHARE = 2, 0.02  # by so much maps and video may differ in length
_THREADS = 8


class FolderSource(RecordedSource):
    """Samples cut from the videos of a folder; nothing but the frames that a sample shows is read.

    Args:
        folder: see `scan_folder`.
        cut: how samples are taken.
        recordings: what `scan_folder` found there for the same face maps; None to look now.
    Raises:
        UserError: no usable video.
    """

    def __init__(self, folder: Path, cut: Cut, recordings: Recordings | None = None) -> None:
        super().__init__(recordings or scan_folder(folder, cut.face), cut)
        self.folder = folder

    @contextmanager
    def opened(self, recording: Recording, kinds: Sequence[str]) -> Iterator[Mapping[str, Path]]:
        """The files where they lie."""
        yield recording_files(self.folder / recording.name, kinds)


def find_videos(folder: Path) -> list[Path]:
    """The videos in a folder and below it, maps and hidden files left out, in the order of their names.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; wanted a folder of videos")
    endings = (SWAPPED, *(f".{kind}" for kind in MAP_KINDS))
    # Not only files: a link that leads nowhere must be told of, by whoever tries to read it.
    found = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir())
    return sorted(p for p in found if not p.stem.endswith(endings) and not p.name.startswith("."))


def recording_files(video: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """Where the files of some kinds lie, whether they exist or not."""
    return {kind: video if kind == VIDEO else video.with_name(f"{video.stem}.{kind}{MAP_SUFFIX}") for kind in kinds}


def shows_scene(video: Path, folder: Path) -> bool:
    """Whether a video lies in a folder called `scenes`."""
    return SCENES in video.relative_to(folder).parts[:-1]


def scan_folder(folder: Path, face: Face = False, *, whatever: bool = False) -> Recordings:
    """Look at every video and its maps: headers and first frames.

    Args:
        folder: of the videos, with sub-folders.
        face: which face maps must be there.
        whatever: also look at all other maps that happen to be there.
    Returns:
        The videos that have everything; the others are among `problems`.
    Raises:
        UserError: no such folder, or no video in it.
    """
    videos = find_videos(folder)
    if not videos:
        raise UserError(f"{folder}: no video in it; wanted {', '.join(VIDEO_SUFFIXES)} files")
    with ThreadPoolExecutor(_THREADS) as pool:
        looked_at = list(pool.map(partial(_look_at, folder=folder, face=face, whatever=whatever), videos))
    problems = [line for _, lines in looked_at for line in lines]
    stems: dict[Path, Path] = {}
    items = []
    for video, (item, _) in zip(videos, looked_at, strict=True):
        first = stems.setdefault(video.with_suffix(""), video)
        if first != video:
            problems.append(f"{video}: left out: {first.name} has the same maps; rename one of them")
        elif item is not None:
            items.append(item)
    return Recordings(str(folder), tuple(items), tuple(problems), f"maps are made by: xdyna data maps {folder}")


def _look_at(video: Path, folder: Path, face: Face, whatever: bool) -> tuple[Recording | None, list[str]]:
    """The recording, or None; and what is wrong with it."""
    is_scene = shows_scene(video, folder)
    needed = () if is_scene else (POSE, *FACE_KINDS[face])
    optional = (POSE,) if is_scene else MAP_KINDS if whatever else (MASK,)
    paths = recording_files(video, (VIDEO, *needed, *optional))
    try:
        for kind in needed:
            if not paths[kind].is_file():
                raise UserError(f"{video}: no {paths[kind].name} beside it; {_remedy(video, folder, kind)}")
        infos = {kind: probe(path) for kind, path in paths.items() if kind == VIDEO or path.is_file()}
        num_frames, fps = _common_frames(video, infos)
        _check_sizes(video, infos)
        num_bytes = sum(paths[kind].stat().st_size for kind in infos)
    except (UserError, OSError) as error:
        return None, [f"left out: {error}"]
    size_wh = infos[POSE if POSE in infos else VIDEO].size_wh
    name = video.relative_to(folder).as_posix()
    notes = []
    video_frames = frames_at(infos[VIDEO], fps)
    if num_frames < video_frames - _slack(video_frames):
        notes.append(f"{video}: its maps have {num_frames} of {video_frames} frames; the rest is not used")
    return Recording(name, num_frames, fps, size_wh, is_scene, infos, num_bytes), notes


def _remedy(video: Path, folder: Path, kind: str) -> str:
    if kind in FACE_KINDS["swapped"]:
        swapped = f"{video.stem}{SWAPPED}{video.suffix}"
        return f"put {swapped} (the same video with another face) there, then: xdyna data maps {folder}"
    return f"make it: xdyna data maps {folder}"


def frames_at(info: VideoInfo, fps: Fraction) -> int:
    """Frames of a video when it is sampled at a rate."""
    if info.num_frames is not None and info.fps == fps:
        return info.num_frames
    return max(1, round(info.duration_s * fps))


def _slack(num_frames: int) -> int:
    return max(_SLACK_FRAMES, round(_SLACK_SHARE * num_frames))


def _common_frames(video: Path, infos: Mapping[str, VideoInfo]) -> tuple[int, Fraction]:
    """Frames that video and maps all have, and the maps' rate."""
    fps = infos[POSE if POSE in infos else VIDEO].fps
    counts = {kind: frames_at(info, fps) for kind, info in infos.items()}
    for kind, info in infos.items():
        if kind != VIDEO and info.fps != fps:
            raise UserError(f"{video}: its {kind} maps run at {float(info.fps):g} fps, its pose maps at {float(fps):g}")
        if counts[kind] > counts[VIDEO] + _slack(counts[VIDEO]):
            raise UserError(
                f"{video}: {counts[kind]} {kind} maps for {counts[VIDEO]} frames at {float(fps):g} fps; wanted maps of "
                "this very video"
            )
        if kind != VIDEO and POSE in counts and abs(counts[kind] - counts[POSE]) > _slack(counts[POSE]):
            raise UserError(f"{video}: {counts[kind]} {kind} maps and {counts[POSE]} pose maps; wanted as many")
    return min(counts.values()), fps


def _check_sizes(video: Path, infos: Mapping[str, VideoInfo]) -> None:
    """Maps are all of one size; a mask may have the video's."""
    if POSE not in infos:
        return
    wanted = infos[POSE].size_wh
    for kind, info in infos.items():
        allowed = (wanted, infos[VIDEO].size_wh) if kind == MASK else (wanted,)
        if kind != VIDEO and info.size_wh not in allowed:
            (width, height), (wanted_width, wanted_height) = info.size_wh, wanted
            raise UserError(
                f"{video}: its {kind} maps are {width}x{height} px, its pose maps {wanted_width}x{wanted_height}; "
                "wanted one size"
            )
