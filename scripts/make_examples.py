"""Draw the pictures and videos of examples/ again; everything in them comes from `xdyna.data` and the numbers below.

python scripts/make_examples.py [FOLDER]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from xdyna.data.synthetic.body import Body
from xdyna.data.synthetic.character import Character
from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, render
from xdyna.data.synthetic.framing import Camera, random_camera
from xdyna.photo import write_png

SIZE_WH = (384, 576)
FPS = 12.0
RATE_HZ = 48_000
#: Another seed than any that a recipe trains on.
WORLD = World(seed=2024, size_wh=SIZE_WH, fps=FPS, framings={"full": 1.0}, loop_s=1.0)
FULL = Camera(middle=0.5, ground=0.955, body=0.76)

MIRA = Character(
    body=Body(girth=1.05),
    skin=(232, 184, 150), hair=(70, 44, 28), hair_style="long", hair_length=0.24,
    top=(220, 52, 60), trim=(250, 230, 90), sleeve="short", pattern="plain",
    bottom=(38, 62, 140), bottom_kind="trousers", shoes=(240, 240, 240), eyes=(60, 110, 170),
)  # fmt: skip
TOM = Character(
    body=Body(girth=1.15, shoulder=0.116),
    skin=(124, 82, 56), hair=(34, 26, 24), hair_style="short",
    top=(250, 200, 60), trim=(240, 240, 240), sleeve="long", pattern="plain",
    bottom=(52, 54, 62), bottom_kind="trousers", shoes=(150, 40, 40), eyes=(40, 34, 34),
)  # fmt: skip
LENA = Character(
    body=Body(girth=1.0),
    skin=(246, 212, 184), hair=(190, 70, 30), hair_style="pigtails", hair_length=0.2,
    top=(60, 170, 110), trim=(250, 250, 250), sleeve="none", pattern="dots",
    bottom=(150, 60, 160), bottom_kind="skirt", shoes=(60, 40, 60), eyes=(60, 130, 70),
)  # fmt: skip
KAI = Character(
    body=Body(girth=1.1, leg=0.232),
    skin=(168, 116, 80), hair=(214, 90, 150), hair_style="ponytail", hair_length=0.22,
    top=(70, 140, 230), trim=(250, 240, 230), sleeve="short", pattern="stripes",
    bottom=(240, 150, 50), bottom_kind="shorts", shoes=(60, 60, 70), eyes=(92, 56, 30),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A photo: who, before which scene (kind and number), in which moment of which dance, how near."""

    name: str
    character: Character
    scene: str
    scene_index: int
    dance_index: int
    time_s: float
    framing: str = "full"


@dataclass(frozen=True)
class Dance:
    """A video: who, before which scene, which dance, for how long, how near, and the pace of its sound."""

    name: str
    character: Character
    scene: str
    scene_index: int
    dance_index: int
    start_s: float
    duration_s: float
    framing: str = "full"


PICTURES = (
    Picture("photo", MIRA, "sea", 3, 7, 0.8),
    Picture("photo_waterfall", LENA, "waterfall", 4, 9, 0.5),
    Picture("photo_fire", TOM, "fire", 2, 11, 0.4),
    Picture("photo_clouds", KAI, "meadow", 5, 14, 0.3),
    Picture("portrait", KAI, "waterfall", 7, 3, 0.2, "bust"),
)
DANCES = (
    Dance("dance", TOM, "studio", 6, 5, 0.0, 3.0),
    Dance("dance_2", LENA, "meadow", 8, 12, 0.0, 3.0),
    Dance("song", LENA, "studio", 9, 21, 0.0, 3.0, "bust"),
)


def main(folder: Path) -> None:
    """Write every example into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        clip = draw(picture, np.asarray([picture.time_s]))
        write_png(folder / f"{picture.name}.png", clip.frames[0])
    for dance in DANCES:
        times_s = dance.start_s + np.arange(round(dance.duration_s * FPS)) / FPS
        clip = draw(dance, times_s)
        beat_s = clip_spec(WORLD, dance.dance_index).motion.beat_s
        write_video(folder / f"{dance.name}.mp4", clip.frames, drum_loop(dance.duration_s, beat_s))
        clip.tracks.save(folder / f"{dance.name}.tracks.npz")


def draw(what: Picture | Dance, times_s: NDArray[np.float64]) -> Clip:
    """The clip of an example at the given times [F]."""
    motion = clip_spec(WORLD, what.dance_index).motion
    motion = replace(motion, phase_s=0.0)
    spec = ClipSpec(
        what.character, motion, camera(what), what.scene, (WORLD.seed, what.scene_index, 1), loop_s=WORLD.loop_s
    )
    return render(spec, times_s, SIZE_WH, FPS)


def camera(what: Picture | Dance) -> Camera:
    """Where the person of an example stands."""
    if what.framing == "full":
        return FULL
    return random_camera(np.random.default_rng(WORLD.seed), {what.framing: 1.0}, what.character.body)


def drum_loop(duration_s: float, beat_s: float) -> NDArray[np.float32]:
    """A bass drum on every beat, a hi-hat between beats and a soft bass note: mono [N], -1..1."""
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    on_beat = time_s % beat_s
    drum = np.sin(2 * np.pi * 42 * on_beat + 14 * (1 - np.exp(-on_beat * 40))) * np.exp(-on_beat * 14)
    off_beat = (time_s + beat_s / 2) % beat_s
    hat = np.random.default_rng(1).standard_normal(len(time_s)) * np.exp(-off_beat * 60) * 0.25
    note_hz = np.asarray([55.0, 55.0, 65.4, 49.0])[(time_s / beat_s).astype(int) % 4]
    bass = np.sin(2 * np.pi * note_hz * time_s) * np.exp(-on_beat * 3) * 0.3
    return (0.6 * drum + hat + bass).astype(np.float32).clip(-1, 1)


def write_video(path: Path, frames: NDArray[np.uint8], sound: NDArray[np.float32]) -> None:
    """An MP4 of H.264 frames [F, H, W, 3] and AAC sound [N]; the same input gives the same bytes."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as file:
        video = file.add_stream("libx264", rate=round(FPS), options={"crf": "18", "preset": "slow", "threads": "1"})
        video.width, video.height, video.pix_fmt = *SIZE_WH, "yuv420p"
        audio = file.add_stream("aac", rate=RATE_HZ, layout="mono", bit_rate=64_000)
        chunk = RATE_HZ // round(FPS)
        for index, frame in enumerate(frames):
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            samples = av.AudioFrame.from_ndarray(
                sound[None, index * chunk : (index + 1) * chunk], format="fltp", layout="mono"
            )
            samples.sample_rate, samples.pts = RATE_HZ, index * chunk
            file.mux(audio.encode(samples))
        file.mux(video.encode(None))
        file.mux(audio.encode(None))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "examples")
