"""The one schema of 'animate this photo with that video', for manifests of many jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from xdyna.configs import Config, read_yaml
from xdyna.errors import UserError, near_matches

#: Keys of a job besides settings, with the other names that manifests in use give them. `image_path`,
#: `target_videos`, `target_no_head_poses` and `caption` are those of the official repository's `example.json`.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "ref": ("reference", "ref_image", "image_path", "source_image"),
    "pose_video": ("driving", "driving_video", "target_videos"),
    "output": ("out",),
    "pose_maps": ("target_no_head_poses",),
    "prompt": ("caption",),
}
_INPUT_SETTINGS = ("pose_maps", "tracks")


class Job(Config):
    """One photo, one driving video, and the settings that differ from the command's own.

    Attributes:
        ref: the photo.
        pose_video: the driving video; None where drawn pose maps or tracks stand for it.
        output: file or folder to write, relative to the output folder; None: named after the inputs.
        settings: `AnimateConfig` keys and values.
        origin: manifest and place in it, for messages.
    """

    ref: Path
    pose_video: Path | None = None
    output: Path | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    origin: str = ""

    def default_name(self) -> str:
        """``PHOTO_VIDEO``, without a suffix."""
        driver = self.pose_video or self.settings.get("pose_maps") or self.settings.get("tracks") or "out"
        return f"{self.ref.stem}_{Path(driver).name.split('.')[0]}"


def load_jobs(path: Path) -> list[Job]:
    """Read a manifest: YAML or JSON with a list of jobs, or a mapping ``{defaults: {..}, jobs: [..]}``; or JSON lines.

    A job is a mapping with `ref`, `pose_video`, `output` and any setting; the official ``example.json`` is such a list
    under other names (`ALIASES`). Input paths are relative to the manifest's folder, or, where the file is not there
    but is found from the current folder, to that (the official manifest is written that way). Files are not opened.

    Raises:
        UserError: the file cannot be read, holds something else, or a job lacks its photo or its driver.
    """
    entries, defaults = _read_entries(path)
    if not entries:
        raise UserError(f"{path}: holds no jobs, wanted at least one")
    return [_read_job(entry, defaults, path, number) for number, entry in enumerate(entries, 1)]


def outputs_of(jobs: Iterable[Job], folder: Path, suffix: str = ".mp4") -> list[Path]:
    """The file of every job under `folder`; unnamed ones are named after their inputs, numbered where names repeat.

    Raises:
        UserError: two jobs name the same output.
    """
    jobs = list(jobs)
    named = [folder / job.output for job in jobs if job.output]
    taken: dict[Path, str] = {}
    outputs = []
    for job in jobs:
        output = folder / (job.output or f"{job.default_name()}{suffix}")
        count = 1
        while not job.output and (output in taken or output in named):
            count += 1
            output = folder / f"{job.default_name()}-{count}{suffix}"
        if output in taken:
            raise UserError(
                f"{job.origin}: output {output} is also that of {taken[output]}, wanted one file for each job"
            )
        taken[output] = job.origin
        outputs.append(output)
    return outputs


def _read_entries(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """The raw jobs of a manifest, and the settings it gives to all."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_json_lines(path), {}
    data = read_yaml(path)
    if isinstance(data, dict) and "jobs" in data:
        for key in data:
            if key not in ("jobs", "defaults"):
                raise UserError(f"{path}: unknown key {key!r}{near_matches(str(key), ('jobs', 'defaults'))}")
        data, defaults = data["jobs"], data.get("defaults") or {}
    else:
        defaults = {}
    if not isinstance(data, list) or not isinstance(defaults, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, wanted a list of jobs or a mapping with 'jobs'")
    return data, defaults


def _read_json_lines(path: Path) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold what else ends a line, such as U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{path} line {number}: not JSON: {error}") from None
    return entries


def _read_job(entry: Any, defaults: Mapping[str, Any], path: Path, number: int) -> Job:
    origin = f"{path} job {number}"
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise UserError(f"{origin}: is a {type(entry).__name__}, wanted a mapping with 'ref' and 'pose_video'")
    values = {**_rename(defaults, f"{path} defaults"), **_rename(entry, origin)}
    for key in ("ref", "pose_video", *_INPUT_SETTINGS):
        if isinstance(values.get(key), str):
            values[key] = _find_input(values[key], path.parent)
    paths = {key: values.pop(key) for key in ("ref", "pose_video", "output") if key in values}
    if "ref" not in paths:
        raise UserError(f"{origin}: has no photo, wanted 'ref' (or {', '.join(ALIASES['ref'])})")
    if "pose_video" not in paths and not any(key in values for key in _INPUT_SETTINGS):
        raise UserError(f"{origin}: has no driving video, wanted 'pose_video' (or {', '.join(ALIASES['pose_video'])})")
    try:
        return Job(**paths, settings=values, origin=origin)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{origin}: {first['loc'][0]}: got {first['input']!r}, wanted a path") from None


def _rename(entry: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The entry under our own key names."""
    ours = {alias: key for key, aliases in ALIASES.items() for alias in aliases}
    renamed: dict[str, Any] = {}
    for key, value in entry.items():
        name = ours.get(key, key)
        if name in renamed:
            raise UserError(f"{origin}: gives {name!r} twice, the second time as {key!r}")
        renamed[name] = value
    return renamed


def _find_input(text: str, folder: Path) -> Path:
    beside = folder / Path(text).expanduser()
    return Path(text) if not beside.exists() and Path(text).exists() else beside
