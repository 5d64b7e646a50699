"""Every metric moves the right way, step by step, as a clip gets worse: the table says which way, or that it stays.

Clips of the synthetic world are spoiled in one way at a time, in three grades.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from xdyna.data.synthetic.clips import Clip, ClipSpec, World, clip_spec, render
from xdyna.metrics.backbones import load_backbone
from xdyna.metrics.registry import METRICS, ClipMetric, Sample
from xdyna.metrics.specs import Region

SCENES = ("sea", "waterfall", "meadow")
FRAMES, FPS = 10, 6.0  # drift needs more than a second and a half
#: Somebody before a waterfall, and a face by the sea that speaks.
CLIPS = {
    "full": (World(framings={"full": 1.0}, scenes=SCENES, loop_s=1.0), 10_000_001),
    "face": (World(framings={"bust": 1.0}, scenes=SCENES, loop_s=1.0), 10_000_002),
}

#: What each metric does as a clip gets worse and worse: rises (+), falls (-), stays (0), or nothing is claimed (.).
#: Beside it, how far it may stray where it stays; where it moves, it moves by more than twice as much.
TABLE = """
metric           clip region  blur noise drop frozen swap jitter blink fade jump  strays
l1               full all     +    +     +    +      +    +      +     +    +     0.004
l1               full fg      +    +     +    0      +    +      +     +    +     0.004
l1               full bg      +    +     +    +      0    +      +     +    +     0.004
psnr             full all     -    -     -    -      -    -      -     -    -     0.5
ssim             full all     -    -     -    -      -    -      0     0    0     0.02
colour           full fg      +    .     .    0      +    .      .     .    .     0.6
motion-energy    full bg      -    +     .    -      0    .      +     .    .     0.3
motion-energy    full fg      -    +     .    0      .    .      +     .    .     0.3
motion-map       full bg      -    0     -    -      0    0      0     0    0     0.07
flow             full bg      .    .     .    -      0    .      0     .    .     0.06
dynamic-degree   full bg      -    -     -    -      0    .      0     .    .     0.3
flow-consistency full all     .    -     -    .      0    .      -     .    .     0.05
warping-error    full all     -    +     -    .      0    0      +     .    .     0.3
flicker          full all     -    +     -    0      0    0      +     .    .     0.3
still-flow       full all     +    +     0    0      0    +      0     .    .     0.03
still-change     full all     +    +     0    0      0    +      +     +    +     0.25
seam             full all     .    .     .    .      0    .      .     0    +     0.1
joints-synth     full all     +    0     +    0      .    +      .     .    .     0.25
pck-synth        full all     -    .     -    0      .    0      .     .    .     0.05
expression-mouth face all     -    -     -    0      0    -      0     .    0     0.05
expression-eyes  face all     0    0     -    0      0    0      0     0    0     0.05
drift            full all     0    0     .    0      .    0      .     +    +     0.15
"""
#: `drift-per-minute` is the same over three seconds and more.
TOO_SHORT_FOR = {"drift-per-minute"}

Frames = np.ndarray


class Scene:
    """One clip and what is needed to spoil it."""

    def __init__(self, world: World, index: int) -> None:
        self.spec = clip_spec(world, index)
        self.times_s = np.arange(FRAMES) / 12
        self.clip = self.draw(self.spec)
        self.alone = self.draw(replace(self.spec, person=False)).frames.astype(float)
        self.other = clip_spec(world, index + 40)

    def draw(self, spec: ClipSpec) -> Clip:
        return render(spec, self.times_s, (64, 96), FPS)

    def sample(self, made: Frames) -> Sample:
        clip = self.clip
        return Sample("one", made, clip.frames, clip.masks, clip.frames[0], clip.tracks, clip.tracks.face_xy, FPS, (4,))


def to_uint8(values: Frames) -> Frames:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def blur(scene: Scene, sigma_px: float) -> Frames:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma_px) for frame in scene.clip.frames])


def noise(scene: Scene, strength: float) -> Frames:
    grain = np.random.default_rng(0).normal(0, 1, scene.clip.frames.shape)
    return to_uint8(scene.clip.frames + strength * grain)


def drop(scene: Scene, times: float) -> Frames:
    """Every frame is held so many times, and those between are missing."""
    return scene.clip.frames[np.arange(FRAMES) // int(times) * int(times)]


def freeze(scene: Scene, share: float) -> Frames:
    """The scene fades into its first frame, standing still; the person goes on."""
    through = 1 - scene.clip.masks[..., None] / 255
    return to_uint8(scene.clip.frames + share * through * (scene.alone[:1] - scene.alone))


def swap(scene: Scene, share: float) -> Frames:
    """Skin, hair and clothes take on a stranger's colours."""
    own, other = scene.spec.character, scene.other.character
    colours = {
        name: tuple(
            round((1 - share) * a + share * b) for a, b in zip(getattr(own, name), getattr(other, name), strict=True)
        )
        for name in ("skin", "hair", "top", "bottom")
    }
    return scene.draw(replace(scene.spec, character=replace(own, **colours))).frames


def jitter(scene: Scene, by_px: float) -> Frames:
    """Each frame is shifted on its own."""
    shifts = np.random.default_rng(1).normal(0, by_px, (FRAMES, 2))
    height, width = scene.clip.frames.shape[1:3]
    return np.stack([
        cv2.warpAffine(frame, np.float32([[1, 0, x], [0, 1, y]]), (width, height), borderMode=cv2.BORDER_REPLICATE)
        for frame, (x, y) in zip(scene.clip.frames, shifts, strict=True)
    ])  # fmt: skip


def blink(scene: Scene, levels: float) -> Frames:
    """Every frame is brighter or darker on its own."""
    signs = np.random.default_rng(2).choice([-1.0, 1.0], FRAMES)
    return to_uint8(scene.clip.frames + levels * signs[:, None, None, None])


def fade(scene: Scene, levels: float) -> Frames:
    """Reds rise steadily, by so much in all."""
    rise = np.linspace(0, levels, FRAMES)[:, None, None, None] * np.asarray([1.0, 0.0, 0.0])
    return to_uint8(scene.clip.frames + rise)


def jump(scene: Scene, levels: float) -> Frames:
    """From the border of windows on, all is brighter."""
    return to_uint8(scene.clip.frames + levels * (np.arange(FRAMES) > 4)[:, None, None, None])


GRADED: dict[str, tuple[Callable[[Scene, float], Frames], tuple[float, float, float]]] = {
    "blur": (blur, (1.0, 2.0, 4.0)),
    "noise": (noise, (6.0, 14.0, 30.0)),
    "drop": (drop, (2, 3, 6)),
    "frozen": (freeze, (0.33, 0.67, 1.0)),
    "swap": (swap, (0.33, 0.67, 1.0)),
    "jitter": (jitter, (0.5, 1.0, 2.0)),
    "blink": (blink, (4.0, 8.0, 16.0)),
    "fade": (fade, (10.0, 20.0, 40.0)),
    "jump": (jump, (6.0, 12.0, 24.0)),
}


class Spoilt:
    """The clips, spoilt when asked for; each is spoilt, and its flow found, once."""

    def __init__(self) -> None:
        self.scenes = {name: Scene(*clip) for name, clip in CLIPS.items()}
        self.known: dict[tuple[str, str], list[Sample]] = {}
        self.regressor = load_backbone("joints-synth")

    def samples(self, clip: str, how: str) -> list[Sample]:
        """The truth and three grades, each worse than the last."""
        scene = self.scenes[clip]
        if (clip, "") not in self.known:
            self.known[clip, ""] = [scene.sample(scene.clip.frames)]
        if (clip, how) not in self.known:
            spoil, grades = GRADED[how]
            self.known[clip, how] = [scene.sample(spoil(scene, grade)) for grade in grades]
        return self.known[clip, ""] + self.known[clip, how]

    def values(self, name: str, clip: str, region: Region, how: str) -> Frames:
        """What a metric says of them."""
        metric = METRICS[name]
        assert isinstance(metric, ClipMetric)
        network = self.regressor if metric.backbone else None
        return np.asarray([metric.value(sample, region, network) for sample in self.samples(clip, how)])


@pytest.fixture(scope="module")
def spoilt() -> Iterator[Spoilt]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Spoilt()
    torch.set_num_threads(threads)


def rows() -> list[list[str]]:
    return [line.split() for line in TABLE.strip().splitlines()[1:]]


def complaint(values: Frames, wanted: str, strays: float) -> str:
    """What is wrong with a metric's values of the truth and three grades; empty if nothing is."""
    if np.isnan(values).any():
        return "not measured"
    with np.errstate(invalid="ignore"):  # the truth's own PSNR is infinite
        change = np.where(values == values[0], 0.0, values - values[0])
    if wanted == "0":
        return "" if np.abs(change).max() <= strays else "does not stay"
    up = values if wanted == "+" else -values
    if not (up[1:] >= up[:-1] - strays / 4).all():
        return "goes back"
    return "" if up[-1] - up[0] > 2 * strays else "hardly moves"


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(row[:3]))
def test_metrics_move_the_right_way_or_stay(spoilt: Spoilt, row: list[str]) -> None:
    name, clip, region, *wanted, strays = row
    wrong = []
    for how, sign in zip(GRADED, wanted, strict=True):
        if sign == ".":
            continue
        values = spoilt.values(name, clip, region, how)  # type: ignore[arg-type]
        if problem := complaint(values, sign, float(strays)):
            wrong.append(f"{how} ({sign}) {problem}: {np.round(values, 4)}")
    assert not wrong


def test_the_table_has_every_metric_that_needs_no_foreign_network() -> None:
    header = TABLE.split("\n")[1].split()
    assert header[3:-1] == list(GRADED)
    own = {
        name
        for name, metric in METRICS.items()
        if isinstance(metric, ClipMetric) and metric.backbone in (None, "joints-synth")
    }
    assert {row[0] for row in rows()} == own - TOO_SHORT_FOR


def test_signs_agree_with_what_metrics_call_better() -> None:
    """No way of spoiling a clip may raise a metric of which more is better, or lower one of which less is."""
    for name, clip, region, *wanted, _ in rows():
        better = METRICS[name].better
        assert "+" not in wanted or better != "higher", (name, clip, region)
        assert "-" not in wanted or better != "lower", (name, clip, region)


def test_complaints_are_made() -> None:
    """The check itself can fail."""
    assert complaint(np.asarray([1.0, 2.0, 3.0, 4.0]), "+", 0.5) == ""
    assert complaint(np.asarray([1.0, 2.0, 3.0, 4.0]), "-", 0.5) == "goes back"
    assert complaint(np.asarray([1.0, 3.0, 2.0, 4.0]), "+", 0.5) == "goes back"
    assert complaint(np.asarray([1.0, 1.2, 1.4, 1.6]), "+", 0.5) == "hardly moves"
    assert complaint(np.asarray([1.0, 1.2, 1.4, 1.6]), "0", 0.5) == "does not stay"
    assert complaint(np.asarray([np.inf, 30.0, 20.0, 10.0]), "-", 0.5) == ""
    assert complaint(np.asarray([1.0, np.nan, 1.0, 1.0]), "0", 0.5) == "not measured"


def test_time_reversed_clips_are_as_like_as_before(spoilt: Spoilt) -> None:
    """What compares frame by frame does not heed their order, as long as both clips share it."""
    sample = spoilt.samples("full", "jitter")[2]
    assert sample.truth is not None
    assert sample.masks is not None
    back = replace(sample, made=sample.made[::-1], truth=sample.truth[::-1], masks=sample.masks[::-1])
    for name in ("l1", "psnr", "ssim", "motion-map", "still-change"):
        metric = METRICS[name]
        assert isinstance(metric, ClipMetric)
        assert metric.value(back) == pytest.approx(metric.value(sample), rel=1e-5), name


def test_a_mirror_changes_nothing(spoilt: Spoilt) -> None:
    sample = spoilt.samples("full", "noise")[1]
    assert sample.truth is not None
    flipped = replace(
        sample, made=np.ascontiguousarray(sample.made[:, :, ::-1]), truth=np.ascontiguousarray(sample.truth[:, :, ::-1])
    )
    for name in ("l1", "psnr", "ssim", "motion-energy", "motion-map", "colour", "drift", "seam"):
        metric = METRICS[name]
        assert isinstance(metric, ClipMetric)
        assert metric.value(flipped) == pytest.approx(metric.value(sample), rel=1e-4), name
    for name in ("flow", "flicker"):  # whose patches lie on a grid from the left
        metric = METRICS[name]
        assert isinstance(metric, ClipMetric)
        assert metric.value(flipped) == pytest.approx(metric.value(sample), rel=0.1), name
