"""One video measured: its clips read by the protocol, every metric asked, features fetched or made."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.errors import UserError
from xdyna.infer.evaluate.features import FeatureCache, Features, feature_name
from xdyna.infer.evaluate.frames import (
    PICTURE_SUFFIXES,
    Image,
    OnePicture,
    Part,
    SizeWH,
    Source,
    as_cover,
    clip_starts,
    content_sha256,
    crop_to,
    open_source,
    resized,
    tracks_at,
    windows,
)
from xdyna.infer.evaluate.pairs import Pair
from xdyna.infer.evaluate.protocol import Protocol
from xdyna.infer.evaluate.results import ClipLine
from xdyna.metrics.backbones import find_backbone, load_backbone
from xdyna.metrics.specs import ClipMetric, Metric, Sample, SetMetric
from xdyna.photo import read_photo
from xdyna.preprocess.tracks import Tracks

#: Files on which the values of a clip depend.
_CONTENT = ("generated", "truth", "masks", "photo", "tracks")
_SLACK_S = 0.25  # by so much tracks and video may differ in length


class Networks:
    """Backbones by name, each read once, when it is first asked for.

    Args:
        folder: with their weights; None for the cache alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._loaded: dict[str, Any] = {}
        self._hashes: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, name: str | None) -> Any:
        """The network; None for no name."""
        if name is None:
            return None
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_backbone(name, self._folder)
            return self._loaded[name]

    def sha256(self, name: str | None) -> str:
        """Hash of its files; "" for no name."""
        if name is None:
            return ""
        if name not in self._hashes:
            total = hashlib.sha256()
            for path in find_backbone(name, self._folder)[1]:
                total.update(f"{path.name} {content_sha256(path)}\n".encode())
            self._hashes[name] = total.hexdigest()
        return self._hashes[name]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is measured of every video, and how.

    Attributes:
        protocol: how clips are read.
        clip_metrics: asked of every clip.
        set_metrics: whose features are taken of every clip.
        networks: what metrics look through.
        cache: of features.
    """

    protocol: Protocol
    clip_metrics: Sequence[ClipMetric]
    set_metrics: Sequence[SetMetric]
    networks: Networks
    cache: FeatureCache


@dataclass(frozen=True, eq=False)
class Measured:
    """What came of one video.

    Attributes:
        lines: clip by clip.
        features: of the same clips: generated and true features by `METRIC/REGION`.
        is_new: whether the lines are not in the results yet.
    """

    lines: Sequence[ClipLine]
    features: Sequence[Mapping[str, tuple[Features, Features]]]
    is_new: bool = True


def measure(pair: Pair, method: str, plan: Plan, done: Sequence[ClipLine] = ()) -> Measured:
    """Measure all clips of a video.

    Args:
        pair: the video and what belongs to it.
        method: whose it is.
        plan: what to measure.
        done: lines that an earlier run wrote for it; kept where no file has changed since.
    Raises:
        UserError: something about the pair is wrong; it names the file.
    """
    if pair.problem:
        raise UserError(pair.problem)
    sha256 = {kind: content_sha256(path) for kind, path in pair.files.items() if kind in _CONTENT}
    if any(line.sha256 != sha256 for line in done):
        done = ()
    if done:
        kept = [_kept(line, plan) for line in done]
        if all(features is not None for features in kept):
            return Measured(done, [features or {} for features in kept], is_new=False)
    lines, features = [], []
    clip = OpenedPair(pair, plan.protocol)
    for start, sample in clip.samples():
        before = next((line for line in done if line.start == start), None)
        values, truth = ({}, {}) if before else _values(sample, plan)
        line = before or ClipLine(
            plan.protocol.hash, method, sample.name, pair.name, start, len(sample.made), pair.scene,
            files={kind: str(path.absolute()) for kind, path in pair.files.items()}, sha256=sha256,
            values=values, truth=truth,
        )  # fmt: skip
        found = dict(_features(sample, start, sha256, plan))
        lines.append(replace(line, features={key: names for key, (names, _) in found.items()}))
        features.append({key: arrays for key, (_, arrays) in found.items()})
    return Measured(lines, features, is_new=not done)


def _kept(line: ClipLine, plan: Plan) -> dict[str, tuple[Features, Features]] | None:
    """A clip's features from the cache; None where one of them is not there."""
    found = {}
    for key, names in line.features.items():
        made, true = (plan.cache.load(name) for name in names)
        if made is None or true is None:
            return None
        found[key] = (made, true)
    return found


def keys(metric: Metric, sample: Sample) -> Iterator[tuple[str, Any]]:
    """`METRIC/REGION` and region wherever this clip has what the metric needs."""
    for region in metric.regions:
        if not metric.lacks(sample, region):
            yield f"{metric.name}/{region}", region


def _values(sample: Sample, plan: Plan) -> tuple[dict[str, float], dict[str, float]]:
    """By key the clip's values, and the truth's own where nearness to it counts."""
    values: dict[str, float] = {}
    truth: dict[str, float] = {}
    for metric in plan.clip_metrics:
        network = plan.networks.get(metric.backbone)
        for key, region in keys(metric, sample):
            with _told(key, sample):
                values[key] = metric.value(sample, region, network)
                if metric.better == "truth" and sample.truth is not None:
                    truth[key] = metric.value(sample.of_truth(), region, network)
    return values, truth


@contextmanager
def _told(key: str, sample: Sample) -> Iterator[None]:
    """What a metric cannot take, such as frames that are too small for it, fails the video with its name."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{sample.name}: {key} cannot be measured: {error}") from error


def _features(
    sample: Sample, start: int, sha256: Mapping[str, str], plan: Plan
) -> Iterator[tuple[str, tuple[tuple[str, str], tuple[Features, Features]]]]:
    """By key the names and the features of what was generated and of the truth."""
    if sample.truth is None:
        return
    for metric in plan.set_metrics:
        for key, region in keys(metric, sample):
            facts = {
                "protocol": plan.protocol.hash, "metric": metric.name, "region": region, "start": start,
                "network": plan.networks.sha256(metric.backbone), "masks": sha256.get("masks", ""),
                # The generated clip is brought to the truth's size, so its features depend on that too.
                "size": sample.made.shape[1:3],
            }  # fmt: skip
            made, true = (feature_name({**facts, "clip": sha256[kind]}) for kind in ("generated", "truth"))
            masks = None if region == "all" else sample.masks
            with _told(key, sample):
                pair = [
                    _fetched(name, frames, masks, metric, region, plan)
                    for name, frames in ((made, sample.made), (true, sample.truth))
                ]
            yield key, ((made, true), (pair[0], pair[1]))


def _fetched(name: str, frames: Image, masks: Any, metric: SetMetric, region: Any, plan: Plan) -> Features:
    found = plan.cache.load(name)
    if found is None:
        empty = np.zeros((0, 0), np.float32)
        short = len(frames) < metric.least_frames
        found = empty if short else metric.features(frames, masks, region, plan.networks.get(metric.backbone))
        plan.cache.save(name, found)
    return found


@dataclass(eq=False)
class OpenedPair:
    """A pair's files, looked at and found to fit each other.

    Attributes:
        pair: the files.
        protocol: how they are read.
        made: the generated frames.
        truth: the true ones, if there are any.
        size_wh: what all is brought to.
        crop: what is kept of the truth, its masks and tracks: the middle that has the generated video's shape.
        made_crop: what is kept of the generated frames.
        count: frames that both have.
        starts: of the clips.
    """

    pair: Pair
    protocol: Protocol
    made: Source = field(init=False)
    truth: Source | None = field(init=False)
    size_wh: SizeWH = field(init=False)
    crop: Part = field(init=False)
    made_crop: Part = field(init=False)
    count: int = field(init=False)
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        pair, config = self.pair, self.protocol.config
        self.made = open_source(pair.generated, config)
        self.truth = open_source(pair.truth, config) if pair.truth else None
        try:
            self.crop = crop_to((self.truth or self.made).size_wh, self.made.size_wh, config)
            self.size_wh = config.size or (self.crop.width, self.crop.height)
            self.crop = self.crop.inside(crop_to((self.crop.width, self.crop.height), self.size_wh, config))
            self.made_crop = crop_to(self.made.size_wh, self.size_wh, config)
        except UserError as error:
            raise UserError(f"{pair.truth or pair.generated}: {error}") from None
        self.count = self._count()
        self.starts = clip_starts(pair.name, self.count, config)

    def _count(self) -> int:
        config = self.protocol.config
        made = self.made.count
        if self.truth is None:
            return made
        true = self.truth.count
        if made != true and config.lengths == "equal":
            raise UserError(
                f"{self.pair.generated}: has {made} frames at {config.fps:g} fps and its truth {self.pair.truth} "
                f"{true}; protocol {config.version} wants equal lengths"
            )
        return min(made, true)

    def samples(self) -> Iterator[tuple[int, Sample]]:
        """First frame and clip, one after the other."""
        pair, config = self.pair, self.protocol.config
        photo = read_photo(pair.photo) if pair.photo else None
        tracks = self._tracks()
        made = self._clips(self.made, pair.generated, self.made_crop)
        truth = self._clips(self.truth, pair.truth, self.crop) if self.truth and pair.truth else repeat(None)
        masks = self._masks()
        for start, frames, true, mask in zip(self.starts, made, truth, masks, strict=False):
            cut = tracks[start : start + len(frames)] if tracks else None
            face = cut.face_xy if cut is not None and (cut.face_conf > 0).all() else None
            name = f"{pair.name}@{start}" if len(self.starts) > 1 else pair.name
            inside = (border - start for border in pair.borders)
            borders = tuple(border for border in inside if 0 <= border < config.frames - 1)
            yield start, Sample(name, frames, true, mask, photo, cut, face, config.fps, borders, pair.scene)

    def _clips(self, source: Source, path: Path, crop: Part, turn: Any = None) -> Iterator[Image]:
        config = self.protocol.config
        fit = partial(resized, crop=crop, size_wh=self.size_wh, config=config)
        found = 0
        for clip in windows(source, self.starts, config.frames, lambda frame: fit(turn(frame) if turn else frame)):
            found += 1
            yield clip
        if found < len(self.starts):
            raise UserError(f"{path}: ends before frame {self.starts[found] + config.frames}; the file is damaged")

    def _masks(self) -> Iterator[Image | None]:
        pair, config = self.pair, self.protocol.config
        if pair.masks is None or config.masks == "none":
            return repeat(None)
        own = self.truth or self.made
        is_picture = pair.masks.suffix.lower() in PICTURE_SUFFIXES and not pair.masks.is_dir()
        source: Source = OnePicture(pair.masks, own.count) if is_picture else open_source(pair.masks, config)
        if source.size_wh != own.size_wh:
            sizes = [f"{width}x{height} px" for width, height in (source.size_wh, own.size_wh)]
            raise UserError(f"{pair.masks}: is {sizes[0]} and the clip it belongs to {sizes[1]}; wanted one size")
        if source.count != own.count:
            raise UserError(f"{pair.masks}: has {source.count} frames and its clip {own.count}; wanted as many")
        return self._clips(source, pair.masks, self.crop, as_cover)

    def _tracks(self) -> Tracks | None:
        pair, config = self.pair, self.protocol.config
        if pair.tracks is None:
            return None
        own, tracks = self.truth or self.made, Tracks.load(pair.tracks)
        if tracks.size_wh != own.size_wh:
            sizes = [f"{width}x{height} px" for width, height in (tracks.size_wh, own.size_wh)]
            raise UserError(f"{pair.tracks}: is of frames of {sizes[0]}, its clip has {sizes[1]}; wanted one size")
        apart_s = abs(len(tracks) / tracks.fps - own.count / config.fps)
        if len(tracks) != own.count and apart_s > _SLACK_S:
            raise UserError(
                f"{pair.tracks}: covers {len(tracks) / tracks.fps:.2f} s and its clip {own.count / config.fps:.2f} s; "
                "wanted tracks of this very clip"
            )
        return tracks_at(tracks, own.count, self.crop, self.size_wh, config)
