"""Two methods against each other on the same clips: paired differences with bootstrap intervals and significance.

Videos are drawn, not clips: clips of one video are alike, and drawing them one by one would make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdyna.errors import UserError, near_matches
from xdyna.infer.evaluate.features import FeatureCache
from xdyna.infer.evaluate.resample import (
    FrechetSample,
    centred,
    draw_videos,
    holm,
    interval,
    mean_draws,
    normal_chance,
    sign_flip_chance,
)
from xdyna.infer.evaluate.results import ClipLine, Results

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One figure of both methods.

    Attributes:
        name: `METRIC/REGION`.
        unit: of the values.
        better: "higher", "lower", "truth" (nearer to the truth's own value; then `a` and `b` are mean distances to it)
            or "none".
        a: mean over videos of the first method; for sets the Frechet distance of all.
        b: likewise of the second.
        difference: a - b.
        low: end of the interval of the difference.
        high: likewise.
        p: chance of a difference this far from 0 if there were none, two-sided; None where nothing could be drawn.
        p_holm: the same after Holm's correction for the number of rows.
        videos: that both have a value for.
        winner: "a" or "b" where the difference is significant and one side is better, else "".
        note: why something is not there.
    """

    name: str
    unit: str
    better: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float | None
    p_holm: float | None
    videos: int
    winner: str = ""
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two methods side by side.

    Attributes:
        a: name of the first, with its file.
        b: likewise.
        protocol: version and beginning of the hash.
        level: of the intervals.
        draws: of clips' figures; sets are drawn `set_draws` times.
        set_draws: likewise.
        seed: of the draws.
        rows: figure by figure.
        notes: what is not comparable or left out.
    """

    a: str
    b: str
    protocol: str
    level: float
    draws: int
    set_draws: int
    seed: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        plain = asdict(self)
        for row in plain["rows"]:
            row.update({key: None for key, value in row.items() if isinstance(value, float) and not np.isfinite(value)})
        return plain


def compare(
    a: str | Path,
    b: str | Path,
    *,
    draws: int = 10_000,
    set_draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare two methods on the clips that both have.

    Args:
        a: file of results; `FILE:METHOD` where it holds several methods.
        b: likewise.
        draws: bootstrap samples of each clip metric.
        set_draws: bootstrap samples of each Frechet distance, which cost far more.
        seed: of the draws.
        level: of the intervals, 0..1.
    Raises:
        UserError: other protocols, other truths, no clips in common, or files that cannot be read.
    """
    (first, method_a), (second, method_b) = _open(a), _open(b)
    _check_protocols(first, second)
    clips_a, clips_b = _by_clip(first, method_a), _by_clip(second, method_b)
    common = sorted(clips_a.keys() & clips_b.keys())
    if not common:
        raise UserError(
            f"{a} and {b} have no clip in common ({len(clips_a)} and {len(clips_b)} clips); wanted the same test set"
        )
    pairs = [(clips_a[name], clips_b[name]) for name in common]
    _check_truths(pairs)
    notes = [
        f"{len(mine) - len(common)} clips are in {name} alone and left out"
        for name, mine in ((str(a), clips_a), (str(b), clips_b))
        if len(mine) > len(common)
    ]
    videos = sorted({line.video for line, _ in pairs})
    rows = [_clip_row(key, pairs, videos, first, draws, seed, level) for key in _shared(first, second, pairs, "values")]
    set_keys = _shared(first, second, pairs, "features")
    caches = (_cache(first), _cache(second))
    for key in set_keys:
        stated = (_stated(first, method_a, key), _stated(second, method_b, key))
        rows.append(_set_row(key, pairs, videos, first, caches, stated, set_draws, seed, level))
    rows = _corrected(rows, level)
    notes += _missing_notes(first, second)
    return Comparison(
        _name(first, method_a), _name(second, method_b), first.protocol_label, level, draws, set_draws, seed,
        tuple(rows), tuple(notes),
    )  # fmt: skip


def _open(name: str | Path) -> tuple[Results, str]:
    text = str(name)
    path, method = Path(text), ""
    if not path.exists() and ":" in text:
        file, _, method = text.rpartition(":")
        path = Path(file)
    results = Results.read(path)
    if not method:
        if len(results.methods) > 1:
            raise UserError(f"{path}: holds {', '.join(results.methods)}; wanted one of them as {path}:METHOD")
        method = results.methods[0]
    if method not in results.methods:
        raise UserError(f"{path}: has no method {method!r}{near_matches(method, results.methods)}")
    return results, method


def _name(results: Results, method: str) -> str:
    return f"{method} ({results.path})"


def _check_protocols(a: Results, b: Results) -> None:
    if a.header["protocol_hash"] == b.header["protocol_hash"]:
        return
    mine, theirs = (_flat(results.header["protocol"]) for results in (a, b))
    other = [f"{key} {mine.get(key)} and {theirs.get(key)}" for key in mine if mine.get(key) != theirs.get(key)]
    raise UserError(
        f"{a.path} is of protocol {a.protocol_label} and {b.path} of {b.protocol_label} ({', '.join(other)}); numbers "
        "of different protocols are not compared: score one of them again"
    )


def _flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {**protocol["config"], **{f"version of {name}": value for name, value in protocol["versions"].items()}}


def _by_clip(results: Results, method: str) -> dict[str, ClipLine]:
    return {line.clip: line for line in results.clips if line.method == method}


def _check_truths(pairs: Sequence[tuple[ClipLine, ClipLine]]) -> None:
    for mine, theirs in pairs:
        for kind in ("truth", "masks"):
            if mine.sha256.get(kind) != theirs.sha256.get(kind):
                raise UserError(
                    f"clip {mine.clip}: its {kind} is another file in the two results "
                    f"({mine.files.get(kind)}, {theirs.files.get(kind)}); wanted one test set"
                )


def _shared(a: Results, b: Results, pairs: Sequence[tuple[ClipLine, ClipLine]], what: str) -> list[str]:
    """Figures that both have for some clip, with the same networks, in the order of the first's."""
    keys = dict.fromkeys(key for mine, theirs in pairs for key in getattr(mine, what) if key in getattr(theirs, what))
    return [key for key in keys if not _other_network(key, a, b)]


def _other_network(key: str, a: Results, b: Results) -> bool:
    name = a.header["metrics"][key.rpartition("/")[0]]["backbone"]
    return name is not None and a.header["backbones"].get(name) != b.header["backbones"].get(name)


def _missing_notes(a: Results, b: Results) -> list[str]:
    lacking: dict[tuple[str, str], list[str]] = {}
    notes = []
    for name in dict.fromkeys([*a.header["metrics"], *b.header["metrics"]]):
        here = [results for results in (a, b) if name in results.header["metrics"]]
        if len(here) == 1:
            other = b if here[0] is a else a
            why = other.header["missing"].get(name, "not asked for")
            lacking.setdefault((str(other.path), why), []).append(name)
        elif _other_network(f"{name}/all", a, b):
            notes.append(f"{name}: left out, its network's weights differ between the two")
    return [f"not in {path} ({why}): {', '.join(names)}" for (path, why), names in lacking.items()] + notes


def _clip_row(
    key: str,
    pairs: Sequence[tuple[ClipLine, ClipLine]],
    videos: Sequence[str],
    results: Results,
    draws: int,
    seed: int,
    level: float,
) -> Row:
    facts = results.header["metrics"][key.rpartition("/")[0]]
    values: dict[str, list[tuple[float, float]]] = {}
    for mine, theirs in pairs:
        pair = _pair_values(key, facts["better"], mine, theirs)
        if pair is not None:
            values.setdefault(mine.video, []).append(pair)
    per_video = np.asarray([np.mean(values[video], axis=0) for video in videos if video in values])
    if len(per_video) == 0:
        return _bare(key, facts, float("nan"), float("nan"), 0, "no clip has a value in both")
    a, b = per_video.mean(0)
    if len(per_video) < 2:
        return _bare(key, facts, a, b, len(per_video), "one video alone gives no interval")
    differences = per_video[:, 0] - per_video[:, 1]
    rng = np.random.default_rng([seed, len(differences)])
    sample = mean_draws(differences, draws, rng)
    return _row(key, facts, a, b, sample, len(per_video), level, sign_flip_chance(differences, draws, rng))


def _pair_values(key: str, better: str, mine: ClipLine, theirs: ClipLine) -> tuple[float, float] | None:
    """Both values; distances to the truth's where nearness to it is what counts."""
    pair = [line.values.get(key, np.nan) for line in (mine, theirs)]
    if better == "truth":
        pair = [abs(value - line.truth.get(key, np.nan)) for value, line in zip(pair, (mine, theirs), strict=True)]
    return (pair[0], pair[1]) if np.isfinite(pair).all() else None


def _cache(results: Results) -> FeatureCache | None:
    folder = Path(results.header["cache"])
    if not folder.is_dir():  # moved together with the results
        folder = results.path.with_name(folder.name)
    return FeatureCache(folder) if folder.is_dir() else None


def _set_row(
    key: str,
    pairs: Sequence[tuple[ClipLine, ClipLine]],
    videos: Sequence[str],
    results: Results,
    caches: tuple[FeatureCache | None, FeatureCache | None],
    stated: tuple[float, float],
    draws: int,
    seed: int,
    level: float,
) -> Row:
    facts = results.header["metrics"][key.rpartition("/")[0]]
    samples = []
    for side, cache in enumerate(caches):
        lines = [pair[side] for pair in pairs]
        sample = FrechetSample.load(key, lines, videos, cache) if cache is not None else None
        if sample is None:
            note = "features are not in the cache's folder any more: no interval, and the distances of all clips"
            return _bare(key, facts, *stated, len(videos), note)
        samples.append(sample)
    a, b = (sample.distance() for sample in samples)
    if len(videos) < 2:
        return _bare(key, facts, a, b, len(videos), "one video alone gives no interval")
    rng = np.random.default_rng([seed, len(videos), 1])
    chosen = draw_videos(len(videos), draws, rng)
    drawn = np.asarray([samples[0].distance(pick) - samples[1].distance(pick) for pick in chosen])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2:
        return _bare(key, facts, a, b, len(videos), "too few features for an interval")
    return _row(key, facts, a, b, centred(drawn, a - b), len(videos), level, normal_chance(drawn, a - b))


def _stated(results: Results, method: str, key: str) -> float:
    """The distance as the run summed it up."""
    return next((line.values.get(key, np.nan) for line in results.sets if line.method == method), np.nan)


def _bare(key: str, facts: Mapping[str, Any], a: float, b: float, videos: int, note: str) -> Row:
    nan = float("nan")
    return Row(key, facts["unit"], facts["better"], a, b, a - b, nan, nan, None, None, videos, note=note)


def _row(
    key: str, facts: Mapping[str, Any], a: float, b: float, sample: Floats, videos: int, level: float, p: float | None
) -> Row:
    low, high = interval(sample, level)
    return Row(key, facts["unit"], facts["better"], float(a), float(b), float(a - b), low, high, p, None, videos)


def _corrected(rows: Sequence[Row], level: float) -> list[Row]:
    """With Holm's correction over all rows that have a p, and the winner where one is left."""
    known = [row for row in rows if row.p is not None]
    corrected = dict(zip((row.name for row in known), holm([row.p or 0.0 for row in known]), strict=True))
    found = []
    for row in rows:
        p = corrected.get(row.name)
        winner = ""
        if p is not None and p < 1 - level and row.better != "none" and row.difference != 0:
            winner = "a" if (row.difference > 0) == (row.better == "higher") else "b"
        found.append(Row(**{**asdict(row), "p_holm": p, "winner": winner}))
    return found
