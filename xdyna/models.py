"""Known models on the hub: fetched at a commit that is written down, checked against the hub's own hashes.

What is known beforehand is repositories and file names (`known_models.json`); revisions and hashes there are null until
somebody has seen them. A pull writes what it saw into a lock file in the user's cache folder, and later pulls stay
with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xdyna.errors import UserError, near_matches
from xdyna.files import writing_error, written_whole
from xdyna.hub import Hub, HubError, HubFile

KNOWN = Path(__file__).with_name("known_models.json")
LOCK_NAME = "models.lock.json"
_READ_BYTES = 1 << 22

OnProgress = Callable[[str, int, int], None]


def cache_folder() -> Path:
    """Where models lie: `XDYNA_CACHE`, else `xdyna` in the user's cache folder."""
    if given := os.environ.get("XDYNA_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xdyna"


def pulled_folder(name: str) -> Path:
    """Where the files of a known model are put, in the layout of their authors."""
    return cache_folder() / "models" / name


def converted_folder(name: str) -> Path:
    """Where `xdyna convert` puts the pipeline made of a known model, and `--model auto` looks for it."""
    return cache_folder() / "converted" / name


@dataclass(frozen=True)
class KnownFile:
    """A file of a known model.

    Attributes:
        repo: on the hub.
        path: in the repository.
        target: below the model's folder.
        sha256: if anybody has seen it.
        optional: fetched only when everything is asked for.
    """

    repo: str
    path: str
    target: str
    sha256: str | None
    optional: bool


@dataclass(frozen=True)
class KnownModel:
    """A model that may be pulled: its files, and repository -> (licence, revision if anybody has seen one)."""

    name: str
    about: str
    files: tuple[KnownFile, ...]
    licences: Mapping[str, str]
    revisions: Mapping[str, str | None]

    def wanted(self, everything: bool) -> list[KnownFile]:
        return [file for file in self.files if everything or not file.optional]


def known_models() -> dict[str, KnownModel]:
    """All models in `known_models.json`."""
    data = json.loads(KNOWN.read_text(encoding="utf-8"))
    return {name: _read_model(name, entry) for name, entry in data.items()}


def _read_model(name: str, entry: Mapping[str, Any]) -> KnownModel:
    files = [
        KnownFile(source["repo"], path, f"{source['into']}/{path}".lstrip("/"), sha256, group == "optional")
        for source in entry["sources"]
        for group in ("files", "optional")
        for path, sha256 in source.get(group, {}).items()
    ]
    licences = {source["repo"]: source["licence"] for source in entry["sources"]}
    revisions = {source["repo"]: source["revision"] for source in entry["sources"]}
    return KnownModel(name, entry["about"], tuple(files), licences, revisions)


def find_model(name: str) -> KnownModel:
    """A known model by name.

    Raises:
        UserError: unknown; near names are given.
    """
    models = known_models()
    if name not in models:
        raise UserError(f"unknown model {name!r}{near_matches(name, models)}")
    return models[name]


@dataclass(frozen=True)
class LockedFile:
    """What was seen of a file: its repository, commit, size in bytes and SHA-256."""

    repo: str
    path: str
    commit: str
    size: int
    sha256: str


@dataclass
class Lock:
    """The user's lock file: model -> file below the model's folder -> what was seen."""

    path: Path
    models: dict[str, dict[str, LockedFile]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Lock:
        """The lock file; empty where there is none.

        Raises:
            UserError: it is not readable.
        """
        path = cache_folder() / LOCK_NAME
        if not path.is_file():
            return cls(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            models = {
                name: {target: LockedFile(**entry) for target, entry in files.items()} for name, files in data.items()
            }
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a lock file ({error}); remove it and pull again") from None
        return cls(path, models)

    def write(self) -> None:
        data = {
            name: {target: asdict(file) for target, file in sorted(files.items())}
            for name, files in sorted(self.models.items())
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as part:
            part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def commit(self, name: str, repo: str) -> str | None:
        """The commit at which a model's files of a repository were pulled."""
        return next((file.commit for file in self.models.get(name, {}).values() if file.repo == repo), None)


def pull(
    name: str | KnownModel,
    hub: Hub,
    *,
    everything: bool = False,
    update: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Fetch a known model, check it, write the lock file; returns the model's folder.

    A file that is there already, pulled or put there by hand, is checked and kept. An interrupted download goes on
    where it stopped. Without a network a complete model is still found complete.

    Args:
        name: of a known model, or a model that is not in the list.
        hub: where to fetch from.
        everything: optional files too.
        update: take the newest commit instead of the one in the lock file.
        on_progress: called with a file's name, bytes done, bytes in all.
    Raises:
        UserError: offline (naming what is missing and where to put it), a file that the repository has no more, one
            whose bytes are not what the hub says, no space.
    """
    model = name if isinstance(name, KnownModel) else find_model(name)
    folder, lock = pulled_folder(model.name), Lock.read()
    wanted = model.wanted(everything)
    locked = lock.models.setdefault(model.name, {})
    if not update and all(_is_whole(folder, file, locked) for file in wanted):
        return folder
    try:
        commits, infos = _ask(model, wanted, hub, lock, update)
        _check_space(folder, wanted, infos)
        for file in wanted:
            commit, info = commits[file.repo], infos[file.repo, file.path]
            expected = info.sha256 or file.sha256
            seen = locked.get(file.target)
            if seen and seen.commit == commit and expected and seen.sha256 != expected:
                raise UserError(
                    f"{file.repo}/{file.path}: the hub now says SHA-256 {expected} for commit {commit}, the lock file "
                    f"{lock.path} says {seen.sha256}; wanted them equal: do not trust this file"
                )
            sha256 = _fetch(folder / file.target, commit, info, file, hub, on_progress)
            locked[file.target] = LockedFile(file.repo, file.path, commit, info.size, sha256)
            lock.write()
    except HubError as error:
        raise UserError(_offline_line(model, wanted, folder, locked, error)) from None
    except OSError as error:
        raise writing_error(folder, error) from error
    return folder


def _ask(
    model: KnownModel, wanted: list[KnownFile], hub: Hub, lock: Lock, update: bool
) -> tuple[dict[str, str], dict[tuple[str, str], HubFile]]:
    """The commit of every repository, and what the hub says of every wanted file there."""
    commits: dict[str, str] = {}
    infos: dict[tuple[str, str], HubFile] = {}
    for repo in dict.fromkeys(file.repo for file in wanted):
        pinned = None if update else lock.commit(model.name, repo) or model.revisions[repo]
        commits[repo] = hub.commit(repo, pinned)
        paths = [file.path for file in wanted if file.repo == repo]
        found = hub.files(repo, commits[repo], paths)
        if absent := [path for path in paths if path not in found]:
            raise UserError(
                f"{repo} at {commits[repo]}: has no {', '.join(absent)}; the repository has been rearranged"
            )
        infos |= {(repo, path): file for path, file in found.items()}
    return commits, infos


def _check_space(folder: Path, wanted: list[KnownFile], infos: Mapping[tuple[str, str], HubFile]) -> None:
    absent = [file for file in wanted if not (folder / file.target).is_file()]
    needed = sum(infos[file.repo, file.path].size for file in absent)
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free; set XDYNA_CACHE elsewhere"
        )


def _fetch(target: Path, commit: str, info: HubFile, file: KnownFile, hub: Hub, on_progress: OnProgress | None) -> str:
    """Bring one file to `target` unless it is there; returns its SHA-256, checked against what the hub says."""
    if not (target.is_file() and target.stat().st_size == info.size):
        # Named after the content, so that a half-finished older version is never continued.
        part = target.with_name(f".{target.name}.{(info.sha256 or info.blob_id)[:16]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)

        def on_bytes(done: int, total: int) -> None:
            if on_progress:
                on_progress(f"fetch {target.name}", done, total or info.size)

        hub.download(file.repo, commit, info, part, on_bytes)
        _check(part, info, file, remove=True)
        part.replace(target)
    return _check(target, info, file, remove=False)


def _check(path: Path, info: HubFile, file: KnownFile, *, remove: bool) -> str:
    """SHA-256 of a file that is what the hub says.

    Raises:
        UserError: it is not; a download (`remove`) is thrown away.
    """
    sha256, blob_id = _hashes(path)
    good = sha256 == info.sha256 if info.sha256 else blob_id == info.blob_id
    if good and file.sha256 in (None, sha256) and path.stat().st_size == info.size:
        return sha256
    if remove:
        path.unlink()
    wanted = info.sha256 or f"git blob {info.blob_id}"
    got = sha256 if info.sha256 else f"git blob {blob_id}"
    raise UserError(
        f"{file.repo}/{file.path}: fetched bytes have SHA-256 {got}, the hub says {wanted}; pull again"
        if remove
        else f"{path}: is not the hub's file (SHA-256 {got}, wanted {wanted}); move it away and pull again"
    )


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256, and git's hash of a file that is not a large one."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    blob.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        while chunk := stream.read(_READ_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def _is_whole(folder: Path, file: KnownFile, locked: Mapping[str, LockedFile]) -> bool:
    """Whether a locked file is there with its size; `verify` looks at every byte."""
    path, seen = folder / file.target, locked.get(file.target)
    return seen is not None and path.is_file() and path.stat().st_size == seen.size


def _offline_line(
    model: KnownModel, wanted: list[KnownFile], folder: Path, locked: Mapping[str, LockedFile], error: HubError
) -> str:
    groups: dict[tuple[str, Path], list[str]] = {}
    for file in wanted:
        if not (folder / file.target).is_file():
            into = folder / file.target.removesuffix(file.path)
            groups.setdefault((file.repo, into), []).append(file.path)
    if not groups:
        return f"{model.name}: every file is in {folder}, but none can be checked now: {error}"
    missing = "; ".join(
        f"of {repo} {', '.join(paths)}, to be put into {into}" for (repo, into), paths in groups.items()
    )
    return (
        f"{model.name}: {error}; missing: {missing}; or run `xdyna models pull {model.name}` where there is a network"
    )


State = Literal["good", "missing", "changed", "unverified"]


def verify(name: str) -> Iterator[tuple[str, State]]:
    """Compare every byte of a model with the lock file: (file, state), file by file.

    `good`; `changed` (other bytes than were pulled); `missing`; `unverified` (there, but not in the lock file: put
    there by hand and never compared with the hub). Optional files count once they have been pulled.
    """
    model, folder = find_model(name), pulled_folder(name)
    locked = Lock.read().models.get(name, {})
    for file in model.files:
        path, seen = folder / file.target, locked.get(file.target)
        if not path.is_file():
            if seen or not file.optional:
                yield file.target, "missing"
        elif seen is None:
            yield file.target, "unverified"
        else:
            yield file.target, "good" if _hashes(path)[0] == seen.sha256 else "changed"


def state(name: str) -> str:
    """How far a model is here, without reading its files: a few words."""
    model, folder = find_model(name), pulled_folder(name)
    locked = Lock.read().models.get(name, {})
    wanted = model.wanted(everything=False)
    whole = sum(_is_whole(folder, file, locked) for file in wanted)
    if whole == len(wanted):
        return "pulled"
    there = sum((folder / file.target).is_file() for file in wanted)
    return f"{there} of {len(wanted)} files there" if there else "not pulled"
