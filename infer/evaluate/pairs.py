"""Which generated video goes with which truth: by name in folders, or by a manifest of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError, near_matches
from xdyna.infer.evaluate.frames import CLIP_SUFFIXES, PICTURE_SUFFIXES, picture_files
from xdyna.jobs import Job, load_jobs, outputs_of
from xdyna.preprocess.tracks import SUFFIX as TRACKS_SUFFIX

#: What a job of a manifest may say beside the common keys.
JOB_KEYS = ("truth", "masks", "tracks", "scene", "borders")
#: Ends of names of what `xdyna animate`, `preprocess` and `data` write beside a video.
_BESIDE = (".mask", ".pose", ".face_local", ".face_global", ".swapped", ".compare", ".depth", ".densepose")
_LISTED = 10


@dataclass(frozen=True)
class Pair:
    """A generated video with all that is known of what it should show; None for what is not.

    Attributes:
        name: of the video, the same for every method.
        generated: video, or folder of frames.
        truth: likewise.
        masks: of the person in the truth: video, folder of frames, or a picture for all frames.
        photo: the reference picture.
        tracks: the driving person's joints (`.tracks.npz`) in pixels of the truth.
        driving: video or pose maps that drove it, for reports alone.
        scene: kind of scene, for tables by scene.
        borders: b for a border of context windows between frames b and b+1 of the generated video, which then must
            have the protocol's rate.
        problem: why it cannot be measured, known before anything is read.
    """

    name: str
    generated: Path
    truth: Path | None = None
    masks: Path | None = None
    photo: Path | None = None
    tracks: Path | None = None
    driving: Path | None = None
    scene: str = ""
    borders: tuple[int, ...] = ()
    problem: str = ""

    @property
    def files(self) -> dict[str, Path]:
        """What there is, by kind."""
        kinds = ("generated", "truth", "masks", "photo", "tracks", "driving")
        return {kind: path for kind in kinds if (path := getattr(self, kind)) is not None}


def find_clips(folder: Path) -> dict[str, Path]:
    """Videos and folders of frames in a folder and below it, by their names without suffix (`SCENE/NAME` below).

    Maps, masks and comparisons that lie beside a video under its name are passed over, and so is what is hidden.

    Raises:
        UserError: no such folder, nothing in it, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; wanted a folder of videos, or of folders of frames")
    found: dict[str, Path] = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        name = name if path.is_dir() else name[: -len(path.suffix)]
        if name in found:
            raise UserError(f"{folder}: {found[name].name} and {path.name} have one name; rename or remove one of them")
        found[name] = path
    if not found:
        hint = "; the folder itself holds frames: put it into a folder of its own" if picture_files(folder) else ""
        raise UserError(
            f"{folder}: holds no clips; wanted videos ({', '.join(CLIP_SUFFIXES)}) or folders of frames{hint}"
        )
    return found


def _walk(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            frames = not path.name.endswith("-compare") and picture_files(path)
            yield from [path] if frames else _walk(path)
        elif path.suffix.lower() in CLIP_SUFFIXES and not path.stem.endswith(_BESIDE):
            yield path


def pairs_by_name(
    generated: Path,
    truth: Path,
    *,
    masks: Path | None = None,
    photos: Path | None = None,
    tracks: Path | None = None,
    allow_failed: bool = False,
) -> list[Pair]:
    """The generated and true videos of equal names, in the order of the names.

    Masks (`NAME.mask.mp4`), photos (`NAME.png` ..) and tracks (`NAME.tracks.npz`) are also looked for beside the truth.

    Args:
        generated: folder of generated videos.
        truth: folder of true ones.
        masks: folder of the person's masks under the same names.
        photos: folder of the reference pictures.
        tracks: folder of tracks.
        allow_failed: let videos without a partner be; they are told of in `Pair.problem`.
    Raises:
        UserError: a video has no partner, or a folder cannot be used.
    """
    made, true = find_clips(generated), find_clips(truth)
    lone = [f"{name} (generated alone)" for name in made if name not in true]
    lone += [f"{name} (truth alone)" for name in true if name not in made]
    if lone and (not allow_failed or len(lone) == len(made) + len(true)):
        more = f" and {len(lone) - _LISTED} more" if len(lone) > _LISTED else ""
        raise UserError(
            f"{generated} holds {len(made)} clips and {truth} {len(true)}, wanted the same names in both; without a "
            f"partner: {', '.join(lone[:_LISTED])}{more}; --allow-failed measures the others"
        )
    pairs = []
    for name in sorted({*made, *true}):
        if name not in made or name not in true:
            where, there = (truth, made[name]) if name in made else (generated, true[name])
            pairs.append(Pair(name, there, problem=f"{there}: has no partner in {where}"))
            continue
        pairs.append(
            Pair(
                name,
                made[name],
                true[name],
                _mask_of(name, true[name], masks),
                _beside(name, true[name], photos, PICTURE_SUFFIXES),
                _beside(name, true[name], tracks, (TRACKS_SUFFIX,)),
                scene=name.rpartition("/")[0],
            )
        )
    return pairs


def _beside(name: str, truth: Path, folder: Path | None, suffixes: Iterable[str]) -> Path | None:
    """`NAME` with one of the suffixes in a folder that was given, or beside the truth."""
    base = folder / name if folder else truth if truth.is_dir() else truth.with_suffix("")
    paths = (base.with_name(base.name + suffix) for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)


def _mask_of(name: str, truth: Path, folder: Path | None) -> Path | None:
    if folder is None:
        return _beside(name, truth, None, (".mask.mp4",))
    if (folder / name).is_dir():
        return folder / name
    found = _beside(name, truth, folder, (*CLIP_SUFFIXES, *(f".mask{s}" for s in CLIP_SUFFIXES), *PICTURE_SUFFIXES))
    if found is None:
        raise UserError(f"{folder}: has no mask for {name}; wanted {name}.mp4, {name}.png or a folder {name} of frames")
    return found


def pairs_of_manifest(path: Path, generated: Path) -> list[Pair]:
    """The jobs of a manifest whose outputs lie in a folder, as `xdyna animate --manifest` wrote them.

    A job may say `truth` (a path; null where there is none; else the driving video itself is what the clip should
    show), `masks`, `tracks`, `scene` and `borders`.

    Args:
        path: of the manifest, see `xdyna.jobs.load_jobs`.
        generated: folder that the jobs' outputs are relative to.
    Raises:
        UserError: a manifest that cannot be read, or a key that no job has.
    """
    jobs = load_jobs(path)
    outputs = outputs_of(jobs, generated)
    pairs = [_pair_of_job(job, output, generated, path.parent) for job, output in zip(jobs, outputs, strict=True)]
    names = [pair.name for pair in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two jobs are called {twice}; wanted outputs of different names")
    return sorted(pairs, key=lambda pair: pair.name)


def _pair_of_job(job: Job, output: Path, generated: Path, beside: Path) -> Pair:
    for key in job.settings:
        if key not in JOB_KEYS and key not in AnimateConfig.model_fields:  # those made the video
            known = (*JOB_KEYS, *AnimateConfig.model_fields)
            raise UserError(f"{job.origin}: unknown key {key!r}{near_matches(key, known)}")
    if not output.exists() and output.suffix and output.with_suffix("").is_dir():
        output = output.with_suffix("")  # the same clip as a folder of frames
    truth = job_path(job, "truth", beside) if "truth" in job.settings else job.pose_video
    borders = job.settings.get("borders") or ()
    if not isinstance(borders, (list, tuple)) or not all(isinstance(b, int) for b in borders):
        raise UserError(f"{job.origin}: borders is {borders!r}, wanted a list of frame numbers")
    return Pair(
        output.relative_to(generated).with_suffix("").as_posix(),
        output,
        truth,
        job_path(job, "masks", beside),
        job.ref,
        job_path(job, "tracks", beside),
        job.pose_video,
        str(job.settings.get("scene") or ""),
        tuple(borders),
        "" if output.exists() else f"{output}: no such file; the job's output is not there",
    )


def job_path(job: Job, key: str, beside: Path) -> Path | None:
    """A path that a job says beside the common keys, relative to the manifest's folder; None where it says none."""
    value = job.settings.get(key)
    if value is None:
        return None
    if not isinstance(value, (str, Path)):
        raise UserError(f"{job.origin}: {key} is {value!r}, wanted a path")
    if isinstance(value, Path):  # `load_jobs` has found it
        return value
    return beside / Path(value).expanduser()
