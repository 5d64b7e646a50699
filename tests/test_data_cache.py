"""Latents and embeddings on disk: the same training with and without them, and nothing stale is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_pipeline, tiny_vae
from torch import Tensor

from xdyna.configs.clips import ClipConfig
from xdyna.configs.train import WorldConfig
from xdyna.data.cache import Array, TensorCache, model_hash
from xdyna.data.source import build_source, draw_batch
from xdyna.errors import UserError
from xdyna.train.parts import load_base
from xdyna.train.system import ClipSystem

PICTURES = [np.full((4, 4, 3), value, np.uint8) for value in (1, 2, 3)]


class _Counted:
    """A model's forward that counts how often it runs."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, picture: Array) -> Tensor:
        self.calls += 1
        return torch.full((2,), float(picture.mean()))


def test_every_picture_is_computed_once(tmp_path: Path) -> None:
    cache, compute = TensorCache(tmp_path / "a/b", tiny_vae()), _Counted()
    first = cache.fetch(PICTURES, compute)
    assert first.tolist() == [[1, 1], [2, 2], [3, 3]]
    again = TensorCache(tmp_path / "a/b", tiny_vae()).fetch(
        [*PICTURES[1:], PICTURES[1], np.uint8(7 * PICTURES[0])], compute
    )
    assert again.tolist() == [[2, 2], [3, 3], [2, 2], [7, 7]]
    assert compute.calls == 4


def test_another_model_note_or_form_finds_nothing(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, tiny_vae())
    other = TensorCache(tmp_path, tiny_vae(seed=9))
    precise = TensorCache(tmp_path, tiny_vae(), "bf16")
    paths = {c.path(PICTURES[0]) for c in (cache, other, precise)}
    paths |= {cache.path(PICTURES[0].reshape(2, 8, 3)), cache.path(PICTURES[0].astype(np.int8))}
    assert len(paths) == 5
    scaled = tiny_vae()
    scaled.register_to_config(scaling_factor=0.5)
    assert len({model_hash(tiny_vae()), model_hash(tiny_vae(seed=9)), model_hash(scaled)}) == 3
    assert model_hash(tiny_vae()) == model_hash(tiny_vae())


def test_a_model_read_from_another_folder_is_the_same(tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path / "one")
    vae = type(tiny_vae()).from_pretrained(tmp_path / "one")
    assert model_hash(vae) == model_hash(tiny_vae())


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    cache, compute = TensorCache(tmp_path, tiny_vae()), _Counted()
    cache.fetch(PICTURES[:1], compute)
    path = cache.path(PICTURES[0])
    path.write_bytes(path.read_bytes()[:-3] if content is None else content)
    assert cache.fetch(PICTURES[:1], compute).tolist() == [[1, 1]]
    assert compute.calls == 2
    assert cache.fetch(PICTURES[:1], compute).tolist() == [[1, 1]]
    assert compute.calls == 2


def test_an_impossible_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/sub: cannot be made"):
        TensorCache(tmp_path / "file/sub", tiny_vae())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline(image_prompt=True).save_pretrained(folder)
    return folder


def test_training_is_the_same_with_and_without(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"world": WorldConfig(size_wh=(32, 48)), "reference_dropout": 0.5}
    batch = draw_batch(build_source(ClipConfig(**settings), frames=2), range(3))
    other = draw_batch(build_source(ClipConfig(**settings), frames=2), range(2, 5))

    def losses(**more: Any) -> list[Tensor]:
        system = ClipSystem(load_base(base), ClipConfig(**settings, **more), ("dynamics_adapter",))
        return [system(one)["loss"].detach() for one in (batch, other)]

    plain, made, read = losses(), losses(cache=tmp_path), losses(cache=tmp_path)
    for name in ("latents", "embeddings"):
        assert list((tmp_path / name).rglob("*.safetensors"))
    assert len(list((tmp_path / "latents").rglob("*.safetensors"))) == 5 * 3  # five clips, a frame each
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-6)
    assert made == read
