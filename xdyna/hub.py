"""The few things we ask of the model hub: which commit, what its files should be, and their bytes, resumably."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class HubError(Exception):
    """The hub cannot be reached, or does not have what was asked for; one line says which."""


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file at one commit.

    Attributes:
        path: inside the repository.
        size: bytes.
        blob_id: git's hash of the file, or of its pointer when it is stored as a large file.
        sha256: of the content; None for a small file, for which `blob_id` is the content's own hash.
    """

    path: str
    size: int
    blob_id: str
    sha256: str | None


#: Called with the bytes that are there and the bytes there will be.
OnBytes = Callable[[int, int], None]


class Hub(Protocol):
    """A model hub; raises `HubError`."""

    def commit(self, repo: str, revision: str | None) -> str:
        """The full commit of a revision (None: the newest)."""
        ...

    def files(self, repo: str, commit: str, paths: Sequence[str]) -> dict[str, HubFile]:
        """What is known of those of `paths` that exist."""
        ...

    def download(self, repo: str, commit: str, file: HubFile, part: Path, on_bytes: OnBytes | None = None) -> None:
        """Append to `part` what it lacks of the file; an interrupted call may be repeated."""
        ...


class HuggingFaceHub:
    """The hub at huggingface.co, or at `endpoint`."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint

    def commit(self, repo: str, revision: str | None) -> str:
        from huggingface_hub import HfApi

        with _one_line(repo):
            return str(HfApi(endpoint=self.endpoint).model_info(repo, revision=revision).sha)

    def files(self, repo: str, commit: str, paths: Sequence[str]) -> dict[str, HubFile]:
        from huggingface_hub import HfApi, RepoFile

        with _one_line(repo):
            found = HfApi(endpoint=self.endpoint).get_paths_info(repo, list(paths), revision=commit)
        files = [entry for entry in found if isinstance(entry, RepoFile)]
        return {f.path: HubFile(f.path, f.size, f.blob_id, f.lfs.sha256 if f.lfs else None) for f in files}

    def download(self, repo: str, commit: str, file: HubFile, part: Path, on_bytes: OnBytes | None = None) -> None:
        from huggingface_hub import get_token, hf_hub_url
        from huggingface_hub.file_download import http_get

        # Bytes as they are: a compressed answer could not be resumed.
        headers = {"Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"

        # Not hf_hub_download: since version 2 it throws a half-finished file away when its process ends.
        with _one_line(f"{repo}/{file.path}"), part.open("ab") as stream:
            http_get(
                hf_hub_url(repo, file.path, revision=commit, endpoint=self.endpoint),
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=file.size,
                tqdm_class=_progress_class(on_bytes),
            )


def _progress_class(on_bytes: OnBytes | None) -> Any:
    """A stand-in for the hub library's progress bar that calls `on_bytes`."""

    class Progress:
        def __init__(self, *_: Any, initial: int = 0, total: int | None = None, **__: Any) -> None:
            self.done, self.whole = initial, total or 0

        def update(self, n: float = 1) -> None:
            self.done += int(n)
            if on_bytes:
                on_bytes(self.done, self.whole)

        def __enter__(self) -> Progress:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Progress


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn whatever the hub library raises into one line; full disks and read-only folders pass."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(f"{what}: the hub wants its terms accepted first; log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise HubError(f"{what}: the hub has no such repository (or it is private)") from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{what}: the hub has no such revision") from None
    except errors.EntryNotFoundError:
        raise HubError(f"{what}: the hub has no such file") from None
    except OSError as error:
        if error.filename is not None or error.errno in _DISK_ERRORS:
            raise
        raise HubError(f"{what}: {_first_line(error)}") from None
    except Exception as error:  # connection errors have changed their base class with every version of the library
        raise HubError(f"{what}: {_first_line(error)}") from None


# Not permissions: a firewall, too, answers with those.
_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
