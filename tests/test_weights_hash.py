"""The hash in a record is that of the weights that ran, whatever becomes of the model's folder meanwhile."""

import json
import os
import shutil
from pathlib import Path

import pytest
from animate_inputs import files_in, make_driver, make_photo
from safetensors.torch import load_file, save_file

from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError
from xdyna.infer import session as session_module
from xdyna.infer import weights_hash
from xdyna.infer.animate import AnimateJob, animate
from xdyna.infer.load import choose_model
from xdyna.infer.session import Session
from xdyna.infer.weights_hash import WeightsHash
from xdyna.provenance import read_provenance


@pytest.fixture
def job(tiny_folder: Path, tmp_path: Path) -> AnimateJob:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "dance.mp4", 2)
    (tmp_path / "out").mkdir()
    config = AnimateConfig(model=str(model), frames=2, steps=2)
    return AnimateJob(photo, driver, tmp_path / "out" / "out.gif", config)


def put_in_place(model: Path) -> None:
    """Other weights under the names of those that are there, each file moved there whole."""
    for file in model.rglob("*.safetensors"):
        tensors = {name: tensor * 0.5 for name, tensor in load_file(file).items()}
        save_file(tensors, file.with_suffix(".new"), metadata={"format": "pt"})
        file.with_suffix(".new").replace(file)


def test_a_folder_that_is_replaced_while_the_job_runs(job: AnimateJob, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(job.config.model)
    loaded = choose_model(job.config.model).sha256
    hashed = []
    true_init = WeightsHash.__init__
    monkeypatch.setattr(
        WeightsHash, "__init__", lambda self, folder: (hashed.append(folder), true_init(self, folder))[1]
    )

    def on_progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", 1):
            put_in_place(model)

    with Session() as session:
        first = session.run(job, on_progress)
        assert len(hashed) == 1
        assert first.model_sha256 == loaded
        assert json.loads(job.record.read_text())["model"]["sha256"] == loaded
        marks = read_provenance(job.output)
        assert marks is not None
        assert marks["model_hash"] == loaded
        second = session.run(job)
        third = session.run(job)
    assert second.model_sha256 == third.model_sha256 == choose_model(job.config.model).sha256 != loaded
    assert len(hashed) == 3, "once for each model that was loaded, and once by this test"


def test_a_folder_that_is_replaced_while_it_is_loaded(job: AnimateJob, monkeypatch: pytest.MonkeyPatch) -> None:
    true_load = session_module.load_pipeline

    def load(*args: object) -> object:
        put_in_place(Path(job.config.model))
        return true_load(*args)

    monkeypatch.setattr(session_module, "load_pipeline", load)
    with pytest.raises(UserError, match=r"model: its weights were written while they were read; run again"):
        animate(job)
    assert files_in(job.output.parent) == []


def test_a_file_that_is_written_while_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    true_stamp = weights_hash._stamp
    monkeypatch.setattr(weights_hash, "_stamp", lambda file: (*true_stamp(file), file.tell()))  # another at the end
    with pytest.raises(UserError, match="its weights were written while they were read"):
        WeightsHash(tmp_path).result()
    monkeypatch.undo()
    assert len(WeightsHash(tmp_path).result()) == 64


def test_what_is_stopped_gives_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    monkeypatch.setattr(weights_hash.threading.Thread, "start", lambda self: None)
    hashing = WeightsHash(tmp_path)
    monkeypatch.undo()
    hashing.stop()
    hashing._thread.run()
    with pytest.raises(RuntimeError, match="stopped"):
        hashing.result()
