"""Pictures of one person, in no order of time, as training samples: a folder of photos, or a drawn person's poses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdyna.data.source import TrainingClip
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.data.synthetic_source import SPAN_S
from xdyna.errors import UserError
from xdyna.photo import read_photo
from xdyna.preprocess.align import crop_tracks
from xdyna.preprocess.crop import Image, fit, ratio_crop
from xdyna.preprocess.detect import PoseDetector, build_detector, tracks_beside
from xdyna.preprocess.draw import draw_pose_map, draw_pose_maps
from xdyna.preprocess.tracks import Tracks

FEWEST, MOST = 5, 50
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif"}


@dataclass(frozen=True, eq=False)
class Album:
    """N pictures of one person.

    Attributes:
        name: where they come from.
        frames: uint8 RGB [N, H, W, 3].
        masks: uint8 [N, H, W], how much of each pixel the person covers; 255 where it is not known.
        pose_maps: uint8 RGB [N, H, W, 3]; blank where the pose is not known.
        problems: one line per picture that was left out, and whatever else the user should know.
    """

    name: str
    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    pose_maps: NDArray[np.uint8]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)


class AlbumSource:
    """Samples of an album: some of its pictures, none twice in a sample, one of them the reference.

    Args:
        album: the pictures.
        frames: driving frames of a sample.
        seed: decides with a sample's number which pictures it shows.

    Raises:
        UserError: a sample wants more pictures than there are.
    """

    def __init__(self, album: Album, *, frames: int, seed: int) -> None:
        if frames + 1 > len(album):
            raise UserError(
                f"frames={frames}: a sample would show {frames + 1} pictures and {album.name} has {len(album)}; "
                f"wanted frames={len(album) - 1} or less"
            )
        self.album, self.frames, self.seed = album, frames, seed
        self.num_clips: int | None = len(album)
        content = hashlib.sha256(f"{frames} {seed} {album.frames.shape}".encode())
        for array in (album.frames, album.masks, album.pose_maps):
            content.update(array.tobytes())
        self.fingerprint = f"album-{content.hexdigest()[:16]}"

    def draw(self, index: int) -> TrainingClip:
        """Sample number `index`: 1 + F pictures that are drawn anew for each number."""
        chosen = np.random.default_rng([self.seed, index]).permutation(len(self.album))[: self.frames + 1]
        return TrainingClip(
            name=f"{self.album.name} (pictures {' '.join(str(number) for number in chosen)})",
            frames=self.album.frames[chosen],
            masks=self.album.masks[chosen],
            pose_maps=self.album.pose_maps[chosen],
            face_maps=None,
            is_scene=False,
        )

    def check(self) -> list[str]:
        """What was said while the pictures were read."""
        return list(self.album.problems)


def draw_album(world: World, character: int, pictures: int) -> Album:
    """A person of a world in poses, places and views of other clips.

    Args:
        world: whose person it is.
        character: number of the clip in which the person dances.
        pictures: how many.
    """
    world = replace(world, scene_only=0.0)
    person = clip_spec(world, character).character
    clips = []
    for number in range(pictures):
        key = [world.seed, character, number]
        other = clip_spec(world, int(np.random.default_rng([*key, 1]).integers(2**31)))
        moment = np.random.default_rng([*key, 2]).uniform(0, SPAN_S, 1)
        clips.append(render(replace(other, character=person), moment, world.size_wh, world.fps))
    return Album(
        name=f"synthetic person {character}",
        frames=np.concatenate([clip.frames for clip in clips]),
        masks=np.concatenate([clip.masks for clip in clips]),
        pose_maps=np.stack([next(draw_pose_maps(clip.tracks, world.size_wh)) for clip in clips]),
    )


def read_album(folder: Path, size_wh: tuple[int, int], *, detect: bool) -> Album:
    """Photos of one person, each cut about its centre and brought to one size.

    A photo that cannot be read is left out and listed; more than 50 are taken, with a word about it.

    Args:
        folder: of photos; what is no picture by its name is not looked at.
        size_wh: (width, height), pixels.
        detect: look for poses where a photo has no tracks (`NAME.tracks.npz`) beside it.

    Raises:
        UserError: no such folder, or fewer than 5 photos that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; wanted one with {FEWEST} to {MOST} photos of one person")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    problems: list[str] = []
    photos: list[tuple[Path, Image]] = []
    for path in paths:
        try:
            photos.append((path, read_photo(path)))
        except UserError as error:
            problems.append(f"left out: {error}")
    if len(photos) < FEWEST:
        broken = f" ({problems[0]})" if problems else ""
        raise UserError(
            f"--data {folder}: {len(photos)} of {len(paths)} photos can be read{broken}; "
            f"wanted {FEWEST} to {MOST} of one person"
        )
    if len(photos) > MOST:
        problems.append(
            f"{folder}: {len(photos)} photos, {FEWEST} to {MOST} are usual: all are taken; best are few good"
        )
    crops = [ratio_crop((photo.shape[1], photo.shape[0]), size_wh) for _, photo in photos]
    found = list(_find_poses(photos, detect, problems))
    blank = Tracks.empty(1, size_wh, 1.0)
    tracks = [crop_tracks(t, crop, size_wh) if t else blank for t, crop in zip(found, crops, strict=True)]
    return Album(
        name=str(folder),
        frames=np.stack([fit(photo, crop, size_wh) for (_, photo), crop in zip(photos, crops, strict=True)]),
        masks=np.full((len(photos), size_wh[1], size_wh[0]), 255, np.uint8),
        pose_maps=np.stack([draw_pose_map(one, 0, size_wh) for one in tracks]),
        problems=tuple(problems),
    )


def _find_poses(photos: list[tuple[Path, Image]], detect: bool, problems: list[str]) -> Iterator[Tracks | None]:
    """The person in each photo, in its pixels; where that fails, None and a line in `problems`."""
    finder: PoseDetector | None = None
    if detect and not all(tracks_beside(path) for path, _ in photos):
        try:
            finder, _ = build_detector()
        except UserError as error:
            problems.append(f"pose maps of photos without tracks stay blank: {error}")
    for path, photo in photos:
        try:
            detector = build_detector(video=path)[0] if tracks_beside(path) else finder
            yield detector.detect([photo], fps=1.0) if detector else None
        except UserError as error:
            problems.append(f"{path}: its pose map stays blank: {error}")
            yield None
