"""Recipes on filmed clips through the command: folder, shards and a mixture, with the cache, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
from clip_folders import put_video
from clips import make_clip
from safetensors.numpy import load_file
from tiny_models import tiny_pipeline

from xdyna.cli import main
from xdyna.data.pack import pack

pytestmark = pytest.mark.recipe

WH = (32, 48)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name in ("a", "b", "c"):
        put_video(folder, name, size_wh=WH, num_frames=8)
        for kind in ("face_local", "face_global"):
            make_clip(folder / f"{name}.swapped.{kind}.mp4", 8, 8, WH)
    for name in ("x", "y"):
        put_video(folder, f"scenes/{name}", maps=(), size_wh=(64, 48), num_frames=8)
    put_video(folder, "bare", maps=(), size_wh=WH)
    return folder


def train(recipe: str, base: Path, data: str, out: Path, *more: str) -> int:
    settings = [
        f"buckets=[[{WH[0]},{WH[1]}]]",
        "frames=3",
        "batch=2",
        "workers=0",
        "sample_every=0",
        "validate_clips=2",
    ]
    given = [part for text in (*settings, *more) for part in ("--set", text)]
    return main(["train", recipe, "--base", str(base), "--data", data, "--steps", "1", "--out", str(out), *given])


def weights(out: Path) -> dict[str, np.ndarray]:
    (checkpoint,) = (out / "checkpoints").glob("step-000001")
    return load_file(next(checkpoint.glob("*.safetensors")))


def test_an_adapter_trains_on_a_folder_and_names_what_it_leaves_out(
    base: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("dynamics_adapter", base, str(films), tmp_path / "run", "trains=[dynamics_adapter]") == 0
    assert "bare.mp4: no bare.pose.mp4 beside it; make it: xdyna data maps" in capsys.readouterr().out
    assert (tmp_path / "run/skipped.txt").read_text().count("bare.mp4") == 1
    cached = f"cache={tmp_path / 'cache'}"
    for name in ("first", "second"):
        assert train("dynamics_adapter", base, str(films), tmp_path / name, "trains=[dynamics_adapter]", cached) == 0
    plain, first, second = (weights(tmp_path / name) for name in ("run", "first", "second"))
    assert plain.keys() == first.keys() == second.keys()
    for key, value in plain.items():
        assert (first[key] == second[key]).all()
        np.testing.assert_allclose(first[key], value, atol=1e-4)
    assert list((tmp_path / "cache/latents").rglob("*.safetensors"))


def test_the_face_controlnet_trains_on_swapped_maps_from_shards(base: Path, films: Path, tmp_path: Path) -> None:
    pack(films, tmp_path / "shards", 1)
    assert train("s_face_controlnet", base, str(tmp_path / "shards"), tmp_path / "run") == 0
    assert weights(tmp_path / "run")


def test_drawn_and_filmed_clips_mix(base: Path, films: Path, tmp_path: Path) -> None:
    text = f"synthetic=1,{films}=1"
    world = f"world.size_wh=[{WH[0]},{WH[1]}]"
    assert train("pose_controlnet", base, text, tmp_path / "run", world) == 0
    assert weights(tmp_path / "run")


def test_data_without_a_usable_clip_stops_before_the_first_step(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_video(tmp_path / "films", "bare", maps=())
    assert train("pose_controlnet", base, str(tmp_path / "films"), tmp_path / "run") == 2
    shown = capsys.readouterr().err
    assert "no usable clips (first problem: left out: " in shown
    assert shown.rstrip().endswith(f"maps are made by: xdyna data maps {tmp_path / 'films'}")
    assert not (tmp_path / "run").exists()
