"""Maps lie on disk: the same numbers as from arrays, and no more memory for a longer clip."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY_WH, tiny_clip, tiny_inputs, tiny_pipeline

from xdyna.alive import Alive
from xdyna.denoise import blend_windows
from xdyna.errors import UserError
from xdyna.infer.kept import array_sha256
from xdyna.latents import clip_size, condition_maps
from xdyna.maps import MapClip, SpilledMaps

#: Run in a process of its own: the most memory that it held, in KiB, after a short and after a long clip.
HIGH_WATER = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from animate_inputs import waving_tracks
from test_prepare import FakeClip
from xdyna.latents import condition_maps
from xdyna.preprocess.prepare import prepare

SIZE_WH = (192, 288)
marks = []
for number in (25, 50, 400):
    tracks = waving_tracks(number, SIZE_WH)
    photo = np.zeros((SIZE_WH[1], SIZE_WH[0], 3), np.uint8)
    prepared = prepare(photo, SIZE_WH, FakeClip(tracks), tracks=tracks, align="none")
    for maps in (prepared.pose_maps, *prepared.face_maps):
        condition = condition_maps(maps, SIZE_WH)
        for first in range(0, number, 25):
            condition.window(range(first, first + 25), "cpu", torch.float32)
    marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(marks))
"""


def spilled(clip: np.ndarray) -> SpilledMaps:
    maps = SpilledMaps((clip.shape[2], clip.shape[1]))
    for frame in clip:
        maps.append(frame)
    return maps


def test_frames_come_back_as_they_were() -> None:
    clip = tiny_clip(5)
    clip[3] = 7
    maps = spilled(clip)
    assert isinstance(maps, MapClip)
    assert len(maps) == 5
    assert maps.size_wh == TINY_WH
    assert 0 < maps.num_bytes < clip.nbytes * 1.01
    np.testing.assert_array_equal(np.asarray(maps), clip)
    np.testing.assert_array_equal(maps.frames([4, 0, 4]), clip[[4, 0, 4]])
    np.testing.assert_array_equal(maps[-1], clip[4])
    with pytest.raises(IndexError):
        maps[5]
    assert maps.extremes() == (0, 255)
    tail = spilled(clip[3:])
    assert tail.first(1).extremes() == (7, 7)
    np.testing.assert_array_equal(np.asarray(maps.first(2)), clip[:2])


def test_windows_are_those_of_an_array() -> None:
    clip = tiny_clip(4) // 2 + 20
    for size_wh in (TINY_WH, (24, 40)):
        of_array, of_file = condition_maps(clip, size_wh), condition_maps(spilled(clip), size_wh)
        assert (of_array.low, of_array.high) == (of_file.low, of_file.high)
        assert of_file.size_wh == size_wh
        windows = [maps.window([2, 0, 3], "cpu", torch.float32) for maps in (of_array, of_file)]
        assert torch.equal(*windows)
    assert clip_size(spilled(clip)) == (4, TINY_WH)
    assert array_sha256(spilled(clip)) == array_sha256(clip)
    with pytest.raises(ValueError, match="empty"):
        clip_size(SpilledMaps(TINY_WH))


def test_the_pipeline_takes_clips_on_disk() -> None:
    pipe, inputs = tiny_pipeline(), tiny_inputs(5)

    def run(**maps: object) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipe(**{**inputs, **maps}, num_inference_steps=1, generator=generator, output_type="np").frames

    face = tuple(spilled(clip) for clip in inputs["face_maps"])
    np.testing.assert_array_equal(run(), run(pose_maps=spilled(inputs["pose_maps"]), face_maps=face))


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = SpilledMaps((8, 8))

    class Full:
        def seek(self, position: int) -> None: ...

        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(maps, "_file", Full())
    with pytest.raises(UserError, match="no space left"):
        maps.append(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="wanted uint8"):
        maps.append(np.zeros((8, 9, 3), np.uint8))


def test_of_a_longer_clip_its_latents_are_held_twice() -> None:
    """And no more than that: noise, mask, sums of windows and the scheduler's own are held for a few frames."""
    pipe = tiny_pipeline(face=False)

    class Black:
        size_wh = TINY_WH

        def __init__(self, number: int) -> None:
            self.number = number

        def __len__(self) -> int:
            return self.number

        def frames(self, indices: Sequence[int]) -> np.ndarray:
            return np.zeros((len(indices), TINY_WH[1], TINY_WH[0], 3), np.uint8)

        def extremes(self) -> tuple[int, int]:
            return 0, 255

    def still(unet: Any, latents: torch.Tensor, timestep: Any, conditioning: Any, *rest: Any, **_: Any) -> torch.Tensor:
        windows, weights, guidance = rest
        halves = torch.zeros(2, 1, 4, len(windows[0]), *latents.shape[3:])
        return blend_windows(lambda group: halves, latents, windows, weights, guidance, 1)

    def peak(number: int) -> int:
        with Alive() as alive:
            pipe(
                None, Black(number), reference_latents=torch.zeros(1, 4, 1, 12, 8), num_inference_steps=2,
                output_type="latent", predictor=still, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        return int(alive.peak)

    frame = 4 * 4 * 12 * 8
    assert 1.9 * frame < (peak(600) - peak(200)) / 400 < 2.2 * frame


@pytest.mark.slow
def test_a_longer_clip_takes_no_more_memory() -> None:
    """As arrays, 350 frames more of three maps would take 166 MiB more."""
    command = [sys.executable, "-c", HIGH_WATER, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, short, long = json.loads(done.stdout)
    as_arrays = 350 * 3 * 192 * 288 * 3 / 1024
    assert long - short < as_arrays / 10, f"{short} KiB after 50 frames, {long} after 400"
