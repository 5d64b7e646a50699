"""Every registered metric: measured, with what it needs, in its regions, and in the right direction."""

from dataclasses import replace

import numpy as np
import pytest
from test_metrics import blurred, textured, with_noise

from xdyna.errors import UserError
from xdyna.metrics.clips import isolated
from xdyna.metrics.l1 import l1
from xdyna.metrics.registry import METRICS, ClipMetric, Sample, available, find_metric
from xdyna.preprocess.tracks import Tracks

NEEDS_NOTHING_MORE = ("l1", "psnr", "ssim", "colour", "motion-energy", "flow", "drift")


@pytest.fixture(scope="module")
def sample() -> Sample:
    truth = textured(16, 32, 48, speed=1.0)
    masks = np.zeros((16, 32, 48), np.uint8)
    masks[:, :, :24] = 255
    return Sample("one", with_noise(truth, 8), truth, masks, fps=8)


def clip_metric(name: str) -> ClipMetric:
    metric = METRICS[name]
    assert isinstance(metric, ClipMetric)
    return metric


def test_l1_of_known_errors() -> None:
    clip = np.full((2, 4, 4, 3), 200, np.uint8)
    made = clip.copy()
    made[:, :2] -= 51
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert l1(made, clip) == pytest.approx(0.1)
    assert l1(made, clip, mask) == pytest.approx(0.2)
    assert l1(made, clip, ~mask) == 0
    assert np.isnan(l1(made, clip, np.zeros((4, 4), bool)))
    values = [l1(blurred(textured(), sigma), textured()) for sigma in (0.7, 1.5, 3.0)]
    assert values == sorted(values)


def test_regions_are_measured_apart(sample: Sample) -> None:
    """An error on the person changes what is said of the person and of all, and nothing of the rest."""
    assert sample.truth is not None
    made = sample.truth.copy()
    made[:, :, :12] = 255 - made[:, :, :12]
    spoilt, good = replace(sample, made=made), sample.of_truth()
    for name in NEEDS_NOTHING_MORE:
        metric = clip_metric(name)
        assert metric.regions == ("all", "fg", "bg")
        if name == "flow":  # a person of other brightness moves as before
            continue
        assert metric.value(spoilt, "fg") != metric.value(good, "fg"), name
        if name != "ssim":  # whose windows reach beyond
            assert metric.value(spoilt, "bg") == pytest.approx(metric.value(good, "bg"), rel=1e-6), name


def test_what_a_clip_lacks_is_named(sample: Sample) -> None:
    bare = Sample("bare", sample.made)
    assert clip_metric("psnr").lacks(bare) == ["truth"]
    assert clip_metric("psnr").lacks(bare, "fg") == ["truth", "masks"]
    assert clip_metric("motion-energy").lacks(bare) == []
    assert clip_metric("seam").lacks(bare) == ["borders"]
    assert np.isnan(clip_metric("psnr").value(bare))
    assert np.isnan(clip_metric("motion-energy").value(Sample("short", sample.made[:3])))
    assert np.isnan(clip_metric("drift").value(replace(sample, fps=25)))  # less than a second and a half
    with pytest.raises(ValueError, match=r"seam has no region 'fg', wanted one of \['all'\]"):
        clip_metric("seam").value(sample, "fg")
    with pytest.raises(ValueError, match="'bare' has no truth"):
        bare.of_truth()


def test_joints_take_their_network(sample: Sample) -> None:
    from xdyna.metrics.backbones import load_backbone

    metric = clip_metric("joints-synth")
    middle = np.full((16, 18, 2), 16, np.float32)
    nothing = np.zeros((16, 2, 21, 2), np.float32), np.zeros((16, 2, 21), np.float32)
    face = np.zeros((16, 68, 2), np.float32), np.zeros(16, np.float32)
    tracks = Tracks(middle, np.ones((16, 18), np.float32), *nothing, *face, (48, 32), 8)
    assert metric.lacks(sample) == ["tracks"]
    assert metric.backbone == "joints-synth"
    regressor = load_backbone(metric.backbone)
    assert 0 < metric.value(replace(sample, tracks=tracks), backbone=regressor) < 60
    assert 0 <= clip_metric("pck-synth").value(replace(sample, tracks=tracks), backbone=regressor) <= 1


def test_metrics_are_found_by_name() -> None:
    here, missing = available(["ssim", "psnr"])
    assert [metric.name for metric in here] == ["ssim", "psnr"]
    assert missing == []
    everything, left_out = available()
    assert {metric.name for metric in everything} | {entry.name for entry in left_out} == set(METRICS)
    with pytest.raises(UserError, match="unknown metric 'pnsr'; did you mean psnr"):
        find_metric("pnsr")


def test_isolated_shows_only_the_region(sample: Sample) -> None:
    person = isolated(sample.made, sample.masks, "fg")
    assert (person[:, :, 24:] == 128).all()
    assert (person[:, :, :24] == sample.made[:, :, :24]).all()
    rest = isolated(sample.made, sample.masks, "bg")
    assert (person.astype(int) + rest - 128 == sample.made).all()
    assert isolated(sample.made, None, "all") is sample.made
    with pytest.raises(ValueError, match="region 'bg' without masks"):
        isolated(sample.made, None, "bg")
