"""Write what the model would see: maps as videos, tracks, and one contact sheet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.files import PartPath, refuse_inputs, writing_error, written_whole
from xdyna.infer.load import choose_model
from xdyna.preprocess.tracks import SUFFIX, FloatArray, Tracks

if TYPE_CHECKING:
    from xdyna.infer.sources import Sources
    from xdyna.preprocess.prepare import Prepared

OnProgress = Callable[[str, int, int], None]

#: What videos are called: NAME.pose.mp4 ..
_KINDS = ("pose", "face_local", "face_global")

logger = logging.getLogger("xdyna")


@dataclass(frozen=True)
class PreprocessJob:
    """What to prepare, and where to put it.

    Attributes:
        reference: the photo.
        driving: the driving video; None where `config.pose_maps` or `config.tracks` stand for it.
        folder: for the results; made if missing, files of an earlier run in it are replaced.
        config: as for an animation; what concerns the model's sampling is not used. A `size` of None takes that of
            the model, `face` None means yes.
    """

    reference: Path
    driving: Path | None
    folder: Path
    config: AnimateConfig = field(default_factory=AnimateConfig)

    @property
    def name(self) -> str:
        """Stem of the files written: that of the driving video."""
        path = self.driving or self.config.pose_maps or self.config.tracks
        assert path is not None
        return path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem


@dataclass(frozen=True)
class PreprocessResult:
    """What was written.

    Attributes:
        files: paths, the contact sheet first.
        num_frames: frames of each map.
        fps: frames per second.
        size_wh: (width, height) of the maps, pixels.
        align: the alignment that was done.
        face: whether there are face maps.
        warnings: what the user should know.
    """

    files: tuple[Path, ...]
    num_frames: int
    fps: float
    size_wh: tuple[int, int]
    align: str
    face: bool
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """One line for the user."""
        width, height = self.size_wh
        return f"{self.files[0]}: {self.num_frames} frames of {width}x{height} at {self.fps:g} fps, align {self.align}"

    def report(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "files": [str(path) for path in self.files]}


def preprocess(job: PreprocessJob, on_progress: OnProgress = lambda stage, done, total: None) -> PreprocessResult:
    """Do everything of an animation that comes before the model.

    Raises:
        UserError: anything wrong with files or settings; then nothing is written.
    """
    from xdyna.infer.sources import Sources

    config = job.config
    sources = Sources.open(job.reference, job.driving, config)
    defaults = load_config(AnimateConfig, "infer/x-dyna")
    if config.size is None:
        choice = choose_model(config.model)
        defaults = choice.defaults()
        logger.info("size of model %s", choice.announcement.removeprefix("model "))
    config = config.with_model_defaults(defaults)
    inputs = [path for path in (job.reference, job.driving, config.pose_maps) if path is not None]
    check_places(job.folder, job.name, inputs)
    prepared = sources.prepare(config, face=config.face is not False, on_progress=on_progress)
    files = write_maps(job.folder, job.name, prepared, sources, on_progress)
    return PreprocessResult(
        tuple(files),
        prepared.num_frames,
        float(prepared.fps),
        (prepared.reference.shape[1], prepared.reference.shape[0]),
        prepared.align,
        prepared.face_maps is not None,
        tuple(prepared.warnings),
    )


def check_folder(folder: Path) -> None:
    """Make the folder for results, before the work and not after it.

    Raises:
        UserError: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(folder, error) from error
    PartPath(folder / "try.png").discard()


def check_places(folder: Path, name: str, inputs: Iterable[Path]) -> None:
    """`check_folder`, and see that none of the files that `write_maps` would put there is an input.

    Raises:
        UserError: one is, or nothing can be written there.
    """
    check_folder(folder)
    refuse_inputs([_sheet(folder, name), *(_clip(folder, name, kind) for kind in _KINDS)], inputs)


def _sheet(folder: Path, name: str) -> Path:
    return folder / f"{name}.sheet.png"


def _clip(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}.mp4"


def write_maps(
    folder: Path,
    name: str,
    prepared: Prepared,
    sources: Sources,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> list[Path]:
    """Write NAME.sheet.png, NAME.pose.mp4, NAME.face_local.mp4, NAME.face_global.mp4 and NAME.tracks.npz.

    Tracks are those of the driving video, before alignment, and fit `--tracks` for the same video; they and the face
    maps are left out where there are none. A tracks file that was read stays as it is: it may hold more.

    Args:
        folder: made if missing.
        name: stem of the files.
        prepared: the maps.
        sources: where they come from: the driving frames are read once more for the sheet.
        on_progress: called for each frame written.
    Returns:
        The paths, the contact sheet first.
    Raises:
        UserError: the folder or a file in it cannot be written.
    """
    from xdyna.photo import write_png
    from xdyna.preprocess.contact_sheet import contact_sheet
    from xdyna.video import VideoWriter

    check_folder(folder)
    clips = dict(zip(_KINDS, [prepared.pose_maps, *(prepared.face_maps or ())], strict=False))
    files, done = [_sheet(folder, name)], 0
    for kind, frames in clips.items():
        files.append(_clip(folder, name, kind))
        with VideoWriter(files[-1], frames.size_wh, prepared.fps) as video:
            for frame in frames:
                video.write(frame)
                done += 1
                on_progress("write", done, len(clips) * prepared.num_frames)
    target, read = folder / f"{name}{SUFFIX}", sources.tracks_path
    was_read = read is not None and target.exists() and target.samefile(read)
    if prepared.driving_tracks is not None and not was_read:
        files.append(target)
        start_s = sources.driving.start_s if sources.driving is not None else 0.0
        tracks = _from_the_videos_start(prepared.driving_tracks, start_s, prepared.start_frame)
        with written_whole(files[-1]) as part:
            tracks.save(part)
    write_png(files[0], contact_sheet(prepared, sources.driving))
    return files


def _from_the_videos_start(tracks: Tracks, start_s: float, start_frame: int) -> Tracks:
    """Tracks whose frame 0 is the video's: nobody is in the frames in front of the ones that were used."""
    nobody = Tracks.empty(round(start_s * tracks.fps) + start_frame, tracks.size_wh, tracks.fps)

    def joined(name: str) -> FloatArray:
        return np.concatenate([getattr(nobody, name), getattr(tracks, name)])

    return Tracks(
        joints_xy=joined("joints_xy"),
        joints_conf=joined("joints_conf"),
        hands_xy=joined("hands_xy"),
        hands_conf=joined("hands_conf"),
        face_xy=joined("face_xy"),
        face_conf=joined("face_conf"),
        size_wh=tracks.size_wh,
        fps=tracks.fps,
    )
