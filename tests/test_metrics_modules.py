"""The metrics through networks, as functions and as torchmetrics modules, against other implementations."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_networks import without_hashes, write_all
from test_metrics import Clip, blurred, textured, with_noise
from torch import Tensor, nn

from xdyna.errors import UserError
from xdyna.metrics.backbones import load_backbone
from xdyna.metrics.clip_i import clip_i
from xdyna.metrics.fid import features as picture_features
from xdyna.metrics.frames import rows_of
from xdyna.metrics.frechet import Moments, frechet_distance
from xdyna.metrics.fvd import features as clip_features
from xdyna.metrics.lpips import lpips
from xdyna.metrics.nets.perceptual import Lpips
from xdyna.metrics.registry import METRICS, Sample, SetMetric

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
from xdyna.metrics.modules import metric_module


class Means(nn.Module):
    """A quick network of clips of four frames: means and spreads of colours, and how much each step changes."""

    num_frames = 4

    def forward(self, clips: Tensor) -> Tensor:
        moved = clips.diff(dim=2).abs().mean((3, 4)).flatten(1)
        return torch.cat([clips.mean((2, 3, 4)), clips.std((2, 3, 4)), moved], 1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("networks")
        patch.setenv("XDYNA_CACHE", str(base / "cache"))
        without_hashes(base, patch)
        yield write_all(base / "networks")


@pytest.fixture(scope="module")
def alex(networks: Path) -> Lpips:
    network = load_backbone("lpips-alex", networks)
    assert isinstance(network, Lpips)
    return network


def samples(count: int = 3) -> list[Sample]:
    masks = np.zeros((12, 40, 48), np.uint8)
    masks[:, 8:30, 10:40] = 255
    found = []
    for seed in range(count):
        truth = textured(12, 40, 48, speed=1.0, seed=seed)
        made = with_noise(blurred(truth, 0.7 + 0.3 * seed), 6, seed)
        found.append(Sample(f"clip {seed}", made, truth, masks, truth[0], fps=6, borders=(5,)))
    return found


def known_of(sample: Sample) -> dict[str, object]:
    """A sample's fields as one gives them to a module, arrays as tensors."""
    values = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return {key: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for key, x in values.items()}


# --- LPIPS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lpips-alex", "lpips-vgg"])
def test_lpips_equals_torchmetrics(networks: Path, name: str) -> None:
    """Their scaling, normalising, weighing and averaging over the same layers."""
    from torchmetrics.functional.image.lpips import _LPIPS, NetLinLayer, ScalingLayer

    ours = load_backbone(name, networks)
    theirs = _LPIPS.__new__(_LPIPS)
    nn.Module.__init__(theirs)
    theirs.spatial, theirs.resize, theirs.scaling_layer = False, None, ScalingLayer()
    theirs.net, theirs.L = _Layers(ours), 5
    weights = [getattr(ours, f"lin{index}").model["1"].weight for index in range(5)]
    theirs.lins = nn.ModuleList([NetLinLayer(weight.shape[1]) for weight in weights])
    for lin, weight in zip(theirs.lins, weights, strict=True):
        lin.model[0].weight = weight
    for sample in samples(2):
        assert sample.truth is not None
        made, truth = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (sample.made, sample.truth))
        with torch.no_grad():
            wanted = float(theirs(made, truth, normalize=True).mean())
        assert lpips(sample.made, sample.truth, ours) == pytest.approx(wanted, rel=1e-4)
        assert wanted > 1e-3


class _Layers(nn.Module):
    """The classifier's layers as torchvision builds them: one list, cut after the ReLUs that are compared."""

    def __init__(self, network: Lpips) -> None:
        super().__init__()
        trunk = network.trunk
        made: list[nn.Module] = []
        for number in range(trunk.taken[-1] + 1):
            if number in trunk.convs:
                made.append(network.features[str(number)])
            else:
                made.append(nn.MaxPool2d(*trunk.pools[number]) if number in trunk.pools else nn.ReLU())
        cuts = [0, *(number + 1 for number in trunk.taken)]
        self.parts = nn.ModuleList(nn.Sequential(*made[a:b]) for a, b in pairwise(cuts))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found


def test_batches_make_no_difference(networks: Path, alex: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    inception = load_backbone("inception", networks)
    sample = samples(1)[0]
    assert sample.truth is not None
    rows = rows_of(sample.made[:5], inception)
    assert np.allclose(rows, rows_of(sample.made[:5], inception, batch=2), rtol=1e-5, atol=1e-6)
    masks = sample.where("fg")
    value = lpips(sample.made, sample.truth, alex, masks)
    monkeypatch.setattr("xdyna.metrics.lpips.MOST_PX", 1)  # one frame per call
    assert lpips(sample.made, sample.truth, alex, masks) == pytest.approx(value, rel=1e-5)


def test_lpips_under_masks(alex: Lpips) -> None:
    truth = textured(4, 64, 64)
    made = truth.copy()
    made[:, :, :24] = 255 - made[:, :, :24]
    left, right = np.zeros((2, 4, 64, 64), bool)
    left[:, :, :24], right[:, :, 52:] = True, True
    assert lpips(truth, truth, alex) == 0
    assert lpips(made, truth, alex, np.ones_like(left)) == pytest.approx(lpips(made, truth, alex), rel=1e-5)
    assert lpips(made, truth, alex, left) > 3 * lpips(made, truth, alex, right)
    assert lpips(made, truth, alex, left) == pytest.approx(lpips(truth, made, alex, left), rel=1e-5)
    assert np.isnan(lpips(made, truth, alex, np.zeros_like(left)))
    left[1:] = False  # the person leaves: only the frame that shows it counts
    assert lpips(made, truth, alex, left) == pytest.approx(lpips(made[:1], truth[:1], alex, left[:1]), rel=1e-5)
    with pytest.raises(ValueError, match="wanted sides of at least 32 px"):
        lpips(truth[:, :20], truth[:, :20], alex)


def test_metrics_of_pictures_grow_with_blur_and_noise(networks: Path, alex: Lpips) -> None:
    inception = load_backbone("inception", networks)
    truth = textured(4, 40, 40, speed=1.0)
    true = Moments()
    true.add(picture_features(truth, None, "all", inception))

    def fid(frames: Clip) -> float:
        made = Moments()
        made.add(picture_features(frames, None, "all", inception))
        return frechet_distance(made, true)

    noisy = [with_noise(truth, strength) for strength in (3, 15, 60)]
    soft = [blurred(truth, sigma) for sigma in (0.7, 1.6, 5.0)]
    for clips in (noisy, soft):
        for values in ([lpips(clip, truth, alex) for clip in clips], [fid(clip) for clip in clips]):
            assert values == sorted(values)
            assert values[0] < values[-1]


def test_clip_i_falls_as_another_picture_shows_through(networks: Path) -> None:
    encoder = load_backbone("clip", networks)
    reference, other = textured(1, 40, 60, seed=1)[0].astype(float), textured(1, 40, 60, seed=2)[0]
    clips = [np.repeat((reference + share * (other - reference))[None], 2, 0) for share in (0, 0.3, 0.6, 1)]
    values = [clip_i(np.round(clip).astype(np.uint8), reference.astype(np.uint8), encoder) for clip in clips]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.99


# --- features of clips ------------------------------------------------------------------------------------------------


def test_clips_are_cut_into_windows() -> None:
    clip = with_noise(textured(14, 20, 24, speed=1.0), 3)
    network = Means()
    rows = clip_features(clip, None, "all", network)
    assert rows.shape == (3, 15)
    assert rows.dtype == np.float32
    second = torch.from_numpy(clip[4:8]).permute(3, 0, 1, 2)[None] / 255
    assert np.allclose(rows[1], network(second)[0], atol=1e-6)
    assert np.allclose(rows, clip_features(clip, None, "all", network, batch=1), atol=1e-6)
    assert clip_features(clip[:3], None, "all", network).size == 0
    del Means.num_frames  # a network that takes clips whole
    try:
        assert clip_features(clip[:3], None, "all", Means()).shape == (1, 12)
    finally:
        Means.num_frames = 4


def test_networks_see_only_the_region() -> None:
    masks = np.zeros((4, 20, 24), np.uint8)
    masks[:, :10] = 255
    clip = textured(4, 20, 24)
    other = clip.copy()
    other[:, 10:] = 0
    of = {region: clip_features(clip, masks, region, Means()) for region in ("all", "fg", "bg")}
    of_other = {region: clip_features(other, masks, region, Means()) for region in ("all", "fg", "bg")}
    assert np.array_equal(of["fg"], of_other["fg"])
    assert not np.allclose(of["bg"], of_other["bg"], atol=0.01)
    assert not np.allclose(of["all"], of_other["all"], atol=0.01)


@pytest.mark.parametrize("name", ["fvd", "dtfvd", "cd-fvd"])
def test_video_networks_through_the_registry(networks: Path, name: str) -> None:
    metric = METRICS[name]
    assert isinstance(metric, SetMetric)
    network = load_backbone(str(metric.backbone), networks)
    clip = textured(17, 32, 32, speed=1.0)
    masks = np.zeros((17, 32, 32), np.uint8)
    masks[:, 8:24, 8:24] = 255
    made, true = metric.pair(Sample("x", with_noise(clip, 20), clip, masks), "fg", network)
    assert made.shape == true.shape == (1, {"fvd": 7, "dtfvd": 128, "cd-fvd": 24}[name])
    assert np.isfinite(made).all()
    assert not np.allclose(made, true)
    assert metric.pair(Sample("short", clip[:15], clip[:15]), "all", network)[0].size == 0


# --- modules ----------------------------------------------------------------------------------------------------------


def test_modules_give_the_functions_means(networks: Path) -> None:
    """In each region: metrics with and without a network, with and without a value for these clips."""
    clips = samples(2)
    for name in ("l1", "psnr", "ssim", "lpips", "motion-energy", "seam", "clip-i", "drift-per-minute"):
        metric = METRICS[name]
        assert not isinstance(metric, SetMetric)
        backbone = load_backbone(metric.backbone, networks) if metric.backbone else None
        for region in metric.regions:
            module = metric_module(name, region, backbone=backbone)
            for sample in clips:
                module.update(**known_of(sample))
            values = [metric.value(sample, region, backbone) for sample in clips]
            assert float(module.compute()) == pytest.approx(np.mean(values), rel=1e-12, nan_ok=True), (name, region)
            assert np.isnan(values).all() == (name == "drift-per-minute")  # of two seconds
    assert metric_module("psnr").higher_is_better
    assert metric_module("motion-energy").higher_is_better is None


def test_frechet_module_equals_torchmetrics(networks: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = load_backbone("inception", networks)
    module = metric_module("fid", backbone=network)
    theirs = FrechetInceptionDistance(feature=_FromBytes(network, 128))
    for sample in samples(2):
        assert sample.truth is not None
        made, truth = sample.made[::2], sample.truth[::2]
        module.update(made, truth)
        for frames, real in ((made, False), (truth, True)):
            theirs.update(torch.from_numpy(frames).permute(0, 3, 1, 2), real=real)
    assert float(module.compute()) == pytest.approx(float(theirs.compute()), rel=1e-4)
    assert module.moments("made").count == 12


class _FromBytes(nn.Module):
    def __init__(self, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.network(pictures / 255)
        return found


def test_states_of_processes_merge() -> None:
    """Two modules that saw half of the clips each, and one that saw none, make one that saw all."""
    clips = samples(4)
    for name, region, backbone in (("psnr", "fg", None), ("dtfvd", "bg", Means())):
        whole, *parts = (metric_module(name, region, backbone=backbone) for _ in range(4))
        for index, sample in enumerate(clips):
            whole.update(**_double(sample))
            parts[index % 2].update(**_double(sample))
        parts[0].merge_state(parts[1])
        parts[0].merge_state(parts[2])
        assert float(parts[0].compute()) == pytest.approx(float(whole.compute()), rel=1e-9)
        assert float(whole.compute()) > 0


def _double(sample: Sample) -> dict[str, object]:
    """A clip of 24 frames, long enough for a metric of 16."""
    known = known_of(sample)
    return {**known, **{key: torch.cat([known[key]] * 2) for key in ("made", "truth", "masks")}}  # type: ignore[misc]


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "xdyna.metrics.modules")
    with pytest.raises(UserError, match=r"need torchmetrics: pip install 'xdyna\[eval\]'"):
        import_module("xdyna.metrics.modules")


def test_what_cannot_be_measured_is_said(networks: Path) -> None:
    with pytest.raises(ValueError, match="clip-i has no region 'fg'"):
        metric_module("clip-i", "fg", backbones=networks)
    with pytest.raises(UserError, match="unknown metric 'fdi'; did you mean fvd, fid"):
        metric_module("fdi")
    with pytest.raises(UserError, match="weights of inception are not there"):
        metric_module("fid")

    class Broken(Means):
        def forward(self, clips: Tensor) -> Tensor:
            return super().forward(clips) * (float("nan") if clips.mean() > 0 else 1)

    module = metric_module("dtfvd", backbone=Broken())
    with pytest.raises(UserError, match=r"clip 0: dtfvd/all: 6 of 6 feature vectors hold NaN"):
        module.update(**_double(samples(1)[0]))
