"""Test sets that lie in folders: which layout it is, and what of it is photo, driver, truth and mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xdyna.errors import UserError
from xdyna.infer.evaluate.frames import CLIP_SUFFIXES, PICTURE_SUFFIXES, picture_files
from xdyna.infer.evaluate.pairs import JOB_KEYS, job_path
from xdyna.jobs import load_jobs
from xdyna.preprocess.tracks import SUFFIX as TRACKS_SUFFIX

_BESIDE = (".mask", ".pose", ".face_local", ".face_global", ".swapped", ".compare")


@dataclass(frozen=True)
class Item:
    """One clip of a test set.

    Attributes:
        name: of the clip.
        driving: video, or folder of frames.
        photo: the reference; None: the first frame of the driving clip.
        truth: what the result should show; None where nobody filmed that.
        masks: of the person in the truth.
        tracks: the driving person's joints.
        scene: kind of scene.
    """

    name: str
    driving: Path
    photo: Path | None = None
    truth: Path | None = None
    masks: Path | None = None
    tracks: Path | None = None
    scene: str = ""


@dataclass(frozen=True)
class Dataset:
    """A test set.

    Attributes:
        layout: how its folder is laid out.
        folder: where it lies.
        items: in the order of their names.
    """

    layout: str
    folder: Path
    items: tuple[Item, ...]


def open_dataset(path: Path) -> Dataset:
    """Find out how a folder is laid out, or read a manifest of jobs.

    Raises:
        UserError: of no layout that is known here, or what the layout wants is missing.
    """
    if path.is_file():
        return Dataset("manifest", path, tuple(_manifest(path)))
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; wanted a test set, synthetic-v1 or a manifest of jobs")
    for name, (find, _) in LAYOUTS.items():
        items = find(path)
        if items:
            return Dataset(name, path, tuple(sorted(items, key=lambda item: item.name)))
    wanted = "; ".join(f"{name}: {text}" for name, (_, text) in LAYOUTS.items())
    raise UserError(f"{path}: is of no layout that is known here. {wanted}. Or give a manifest of jobs")


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = (f for f in path.iterdir() if f.suffix.lower() in CLIP_SUFFIXES and not f.name.startswith("."))
    return sorted(f for f in found if not f.stem.endswith(_BESIDE))


def _picture(folder: Path, name: str) -> Path | None:
    return next((path for suffix in PICTURE_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _tiktok(root: Path) -> list[Item]:
    """`00001/images/0001.png`, `00001/masks/0001.png`: the TikTok dataset as its authors give it."""
    items = []
    for folder in _folders(root):
        images, masks = folder / "images", folder / "masks"
        if images.is_dir() and picture_files(images):
            has_masks = masks.is_dir() and picture_files(masks)
            items.append(Item(folder.name, images, truth=images, masks=masks if has_masks else None))
    return items


def _disco(root: Path) -> list[Item]:
    """`001/0000.png`: frames alone, as DisCo's scripts take them."""
    return [Item(folder.name, folder, truth=folder) for folder in _folders(root) if picture_files(folder)]


def _realisdance(root: Path) -> list[Item]:
    """`gt/0001.mp4`, `ref/0001.png`."""
    items = []
    for video in _videos(root / "gt"):
        photo = _picture(root / "ref", video.stem)
        if photo is None and (root / "ref").is_dir():
            raise UserError(f"{root}: is laid out as RealisDance-Val, but ref holds no picture {video.stem}")
        if photo is not None:
            items.append(Item(video.stem, video, photo, truth=video))
    return items


def _x_dance(root: Path) -> list[Item]:
    """`images/00001.png`, `videos/00001/video.mp4` (or `videos/00001.mp4`): equal numbers belong together."""
    images, videos = root / "images", root / "videos"
    if not images.is_dir() or not videos.is_dir() or not picture_files(images):
        return []
    drivers = {video.stem: video for video in _videos(videos)}
    drivers |= {folder.name: folder / "video.mp4" for folder in _folders(videos) if (folder / "video.mp4").is_file()}
    photos = {picture.stem: picture for picture in picture_files(images)}
    common = sorted(drivers.keys() & photos.keys())
    if drivers and not common:
        raise UserError(
            f"{root}: is laid out as X-Dance, but no picture in images has the name of a driver in videos "
            f"({next(iter(photos))}, {next(iter(drivers))}); say which belong together in a manifest of jobs"
        )
    return [Item(name, drivers[name], photos[name]) for name in common]


def _humanvid(root: Path) -> list[Item]:
    """`videos/**/NAME.mp4` beside `camera` or `dwpose`."""
    videos = root / "videos"
    if not videos.is_dir() or not any((root / beside).is_dir() for beside in ("camera", "dwpose")):
        return []
    found = sorted(path for path in videos.rglob("*.mp4") if not path.name.startswith("."))
    return [Item(path.relative_to(videos).with_suffix("").as_posix(), path, truth=path) for path in found]


def _plain(root: Path) -> list[Item]:
    """`NAME.mp4`, and beside it `NAME.png`, `NAME.mask.mp4` and `NAME.tracks.npz` where there are any."""
    items = []
    for video in _videos(root):
        mask, tracks = video.with_name(f"{video.stem}.mask.mp4"), video.with_name(f"{video.stem}{TRACKS_SUFFIX}")
        items.append(
            Item(
                video.stem, video, _picture(root, video.stem), video, mask if mask.is_file() else None,
                tracks if tracks.is_file() else None,
            )
        )  # fmt: skip
    return items


#: Tried in this order: what to look for, and what to tell the user.
LAYOUTS: Mapping[str, tuple[Callable[[Path], list[Item]], str]] = {
    "realisdance-val": (_realisdance, "gt/NAME.mp4 and ref/NAME.png"),
    "x-dance": (_x_dance, "images/NAME.png and videos/NAME/video.mp4"),
    "humanvid": (_humanvid, "videos/../NAME.mp4 beside a folder camera or dwpose"),
    "tiktok": (_tiktok, "NAME/images/0001.png and NAME/masks/0001.png"),
    "disco": (_disco, "NAME/0000.png"),
    "plain": (_plain, "NAME.mp4, with NAME.png, NAME.mask.mp4 and NAME.tracks.npz if there are any"),
}


def _manifest(path: Path) -> list[Item]:
    items = []
    for job in load_jobs(path):
        if job.pose_video is None:
            raise UserError(f"{job.origin}: has no driving video, which a test set needs")
        own = {key: job.settings[key] for key in JOB_KEYS if job.settings.get(key) is not None}
        paths = {key: job_path(job, key, path.parent) for key in ("truth", "masks", "tracks")}
        truth = paths["truth"] if "truth" in job.settings else job.pose_video
        name = Path(job.output).stem if job.output else job.default_name()
        masks, tracks = paths["masks"], paths["tracks"]
        items.append(Item(name, job.pose_video, job.ref, truth, masks, tracks, str(own.get("scene", ""))))
    names = [item.name for item in items]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two jobs are called {twice}; wanted outputs of different names")
    return sorted(items, key=lambda item: item.name)
