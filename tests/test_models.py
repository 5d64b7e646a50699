"""Pulling known models from a local folder that stands in for the hub, through the hub's own library."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import LARGE, LocalHub

from xdyna import models
from xdyna.errors import UserError
from xdyna.hub import HubError, HuggingFaceHub
from xdyna.models import Lock, known_models, pull, pulled_folder, state, verify

MODEL = "x-dyna"
UNET = "unet/unet-checkpoint-epoch-5.ckpt"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Every file of every known model, with bytes of its own; small text files and one above the pointer limit."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for model in known_models().values():
        for file in model.files:
            path = tmp_path / "hub" / file.repo / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            content = f"{file.repo}/{file.path}\n".encode()
            path.write_bytes(content if path.suffix in (".json", ".txt") else content * 5000)
    with LocalHub(tmp_path / "hub").running() as running:
        yield running


def fetch(hub: LocalHub, **kwargs: bool) -> Path:
    return pull(MODEL, HuggingFaceHub(hub.url), **kwargs)


def downloads(hub: LocalHub) -> list[tuple[str, str | None]]:
    return [(path, span) for method, path, span in hub.requests if "/resolve/" in path and method == "GET"]


def test_nothing_unseen_is_committed() -> None:
    """Revisions and hashes in the package are null: nobody here has seen the hub."""
    for model in known_models().values():
        assert set(model.revisions.values()) == {None}
        assert {file.sha256 for file in model.files} == {None}
        assert all(model.licences.values())
        assert len({file.target for file in model.files}) == len(model.files)


def test_pull_locks_what_the_hub_says(hub: LocalHub) -> None:
    folder = fetch(hub)
    wanted = known_models()[MODEL].wanted(everything=False)
    locked = Lock.read().models[MODEL]
    assert set(locked) == {file.target for file in wanted}
    for file in wanted:
        content = (hub.folder / file.repo / file.path).read_bytes()
        assert (folder / file.target).read_bytes() == content
        seen = locked[file.target]
        assert (seen.size, seen.commit) == (len(content), hub.commit(file.repo))
        assert seen.sha256 == hashlib.sha256(content).hexdigest()
    assert sum(entry.size > LARGE for entry in locked.values()) > 3  # both kinds of hash were met
    assert sum(entry.size <= LARGE for entry in locked.values()) > 3
    assert state(MODEL) == "pulled"
    assert {kind for _, kind in verify(MODEL)} == {"good"}
    assert not list(folder.rglob("*.part"))


def test_pulled_files_are_laid_out_for_the_converter(hub: LocalHub) -> None:
    from xdyna.checkpoints import find_official_files

    found = find_official_files(fetch(hub))
    assert set(found.given()) == {
        "unet", "pose_controlnet", "face_controlnet", "ip_adapter", "image_encoder", "sd15",
    }  # fmt: skip
    assert "motion" in find_official_files(fetch(hub, everything=True)).given()


def test_second_pull_asks_nobody(hub: LocalHub) -> None:
    fetch(hub)
    hub.requests.clear()
    fetch(hub)
    assert hub.requests == []


def test_optional_files_on_request(hub: LocalHub) -> None:
    folder = fetch(hub)
    optional = [file for file in known_models()[MODEL].files if file.optional]
    assert optional
    assert not any((folder / file.target).exists() for file in optional)
    fetch(hub, everything=True)
    assert all((folder / file.target).is_file() for file in optional)
    assert all(repo_path.endswith(("mm_sd_v15.ckpt", "unet/diffusion_pytorch_model.safetensors"))
               for repo_path, _ in downloads(hub)[-len(optional) :])  # fmt: skip


def test_broken_connection_is_taken_up_again(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one pull: the library asks for the rest."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut_after = 1000
    folder = fetch(hub)
    assert (folder / UNET).read_bytes() == (hub.folder / "Boese0601/X-Dyna" / UNET).read_bytes()
    assert "bytes=1000-" in {span for _, span in downloads(hub)}


def test_killed_pull_goes_on_where_it_stopped(hub: LocalHub) -> None:
    """Over two processes: what the first left behind is kept and completed."""
    content = (hub.folder / "Boese0601/X-Dyna" / UNET).read_bytes()
    part = pulled_folder(MODEL) / f"unet/.unet-checkpoint-epoch-5.ckpt.{hashlib.sha256(content).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:12345])
    folder = fetch(hub)
    assert (folder / UNET).read_bytes() == content
    assert [span for path, span in downloads(hub) if path.endswith(UNET)] == ["bytes=12345-"]
    assert not part.exists()


def test_later_pulls_stay_with_the_locked_commit(hub: LocalHub) -> None:
    folder = fetch(hub)
    before = Lock.read().commit(MODEL, "Boese0601/X-Dyna")
    (hub.folder / "Boese0601/X-Dyna" / UNET).write_bytes(b"a newer version" * 1000)
    fetch(hub)
    assert Lock.read().commit(MODEL, "Boese0601/X-Dyna") == before
    # A file that is gone has to be fetched, and this hub no longer has the commit that is locked.
    (folder / UNET).unlink()
    with pytest.raises(UserError, match="the hub has no such revision"):
        fetch(hub)
    fetch(hub, update=True)
    assert (folder / UNET).read_bytes() == b"a newer version" * 1000
    assert Lock.read().commit(MODEL, "Boese0601/X-Dyna") == hub.commit("Boese0601/X-Dyna") != before


def test_wrong_bytes_are_thrown_away(hub: LocalHub) -> None:
    hub.lie_about = UNET
    with pytest.raises(UserError, match="fetched bytes have SHA-256") as error:
        fetch(hub)
    assert "\n" not in str(error.value)
    assert not list((pulled_folder(MODEL) / "unet").iterdir())
    assert UNET not in Lock.read().models.get(MODEL, {})


def test_hub_that_changes_its_mind(hub: LocalHub) -> None:
    """The same commit with another hash: somebody tampers."""
    folder = fetch(hub)
    lock = Lock.read()
    (folder / UNET).unlink()
    hub.lie_about = UNET
    with pytest.raises(UserError, match="do not trust this file"):
        fetch(hub)
    assert Lock.read().models == lock.models


def test_verify_reads_every_byte(hub: LocalHub) -> None:
    folder = fetch(hub)
    content = bytearray((folder / UNET).read_bytes())
    content[777] ^= 1
    (folder / UNET).write_bytes(content)
    (folder / "controlnet/controlnet-checkpoint-epoch-5.ckpt").unlink()
    states = dict(verify(MODEL))
    assert states.pop(UNET) == "changed"
    assert states.pop("controlnet/controlnet-checkpoint-epoch-5.ckpt") == "missing"
    assert set(states.values()) == {"good"}


def test_files_put_there_by_hand(hub: LocalHub) -> None:
    """They are compared with the hub once it can be reached, and not fetched again."""
    model = known_models()[MODEL]
    for file in model.wanted(everything=False):
        target = pulled_folder(MODEL) / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(hub.folder / file.repo / file.path, target)
    assert set(dict(verify(MODEL)).values()) == {"unverified"}
    fetch(hub)
    assert downloads(hub) == []
    assert set(dict(verify(MODEL)).values()) == {"good"}
    # Another file of the same size is not taken for the right one.
    (models.cache_folder() / models.LOCK_NAME).unlink()
    target = pulled_folder(MODEL) / UNET
    target.write_bytes(b"x" * target.stat().st_size)
    with pytest.raises(UserError, match="is not the hub's file"):
        fetch(hub)
    assert target.is_file()


def test_offline_says_what_is_missing_and_where_to_put_it(hub: LocalHub) -> None:
    nowhere = HuggingFaceHub("http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(UserError) as error:
        pull(MODEL, nowhere)
    line = str(error.value)
    assert "\n" not in line
    for file in known_models()[MODEL].wanted(everything=False):
        assert f"of {file.repo} " in line
        assert file.path in line
        assert f"to be put into {pulled_folder(MODEL) / file.target.removesuffix(file.path)}" in line
    fetch(hub)
    assert pull(MODEL, nowhere) == pulled_folder(MODEL)  # complete: nobody is asked


def test_switched_offline_by_the_librarys_variable(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()
    try:
        with pytest.raises(UserError, match="missing: of Boese0601/X-Dyna unet/"):
            fetch(hub)
    finally:
        monkeypatch.undo()
        close_session()


def test_repository_or_file_gone(hub: LocalHub) -> None:
    (hub.folder / "Boese0601/X-Dyna" / UNET).unlink()
    with pytest.raises(UserError, match=f"has no {UNET}"):
        fetch(hub)
    shutil.rmtree(hub.folder / "Boese0601")
    with pytest.raises(UserError, match="no such repository"):
        fetch(hub)
    with pytest.raises(HubError, match="no such revision"):
        HuggingFaceHub(hub.url).commit("h94/IP-Adapter", "deadbeef")


def test_no_space(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("xdyna.models.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GB to fetch, 0\.0 GB free; set XDYNA_CACHE"):
        fetch(hub)
    assert downloads(hub) == []


def test_unknown_name_and_damaged_lock(hub: LocalHub) -> None:
    with pytest.raises(UserError, match="unknown model 'xdyna'; did you mean x-dyna"):
        pull("xdyna", HuggingFaceHub(hub.url))
    fetch(hub)
    lock = models.cache_folder() / models.LOCK_NAME
    assert json.loads(lock.read_text())[MODEL]
    lock.write_text("{")
    with pytest.raises(UserError, match="not a lock file"):
        state(MODEL)
