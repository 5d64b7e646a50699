"""The bars that a model of the synthetic world is held to: figures of single clips, and what they have to reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from xdyna.data.synthetic.regions import REGIONS
from xdyna.metrics.clips import Floats, Frames, Mask, grown, mean_where
from xdyna.metrics.colour import colour
from xdyna.metrics.flow import optical_flow, speeds, steps_where
from xdyna.metrics.held_out import Case, loose_regions
from xdyna.metrics.joints import JointRegressor, joint_distances, person_height
from xdyna.metrics.motion_energy import map_correlation, motion_map
from xdyna.metrics.psnr import psnr
from xdyna.metrics.ssim import ssim

#: Background is measured so far from the person, and still background so far from what moves, pixels.
MARGIN_PX = 2
#: A background pixel moves when its brightest channel changes by so many grey levels over the clip, and is still when
#: none changes by more than so few.
MOVES, RESTS = 16, 2
#: The motion maps are blurred by this before they are compared, pixels.
BLUR_PX = 1.5
#: Regions of fewer pixels are left out.
LEAST_REGION_PX = 30

Figures = dict[str, float]


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        name: what was measured.
        value: the figure.
        wanted: the bar in words.
        passed: whether it is reached; None where the line only informs.
        beside: figures to read it by.
    """

    name: str
    value: float
    wanted: str
    passed: bool | None
    beside: Mapping[str, float] = field(default_factory=dict)


def likeness(case: Case, made: Frames) -> Figures:
    """PSNR on the person, off the person and on all, and SSIM, against the truth."""
    truth, masks = case.truth.frames, case.truth.masks
    return {
        "psnr_figure": psnr(made, truth, masks),
        "psnr_background": psnr(made, truth, masks == 0),
        "psnr_whole": psnr(made, truth),
        "ssim": ssim(made, truth),
    }


def joint_figures(case: Case, made: Frames, regressor: JointRegressor) -> Figures:
    """Mean distance to the wanted joints, and the share within a tenth of the person's height."""
    distances = joint_distances(made, case.wanted, regressor)
    known = ~np.isnan(distances)
    if not known.any():
        return {}
    limit = 0.1 * person_height(case.wanted)
    return {"joints_px": float(distances[known].mean()), "pck": float((distances[known] <= limit).mean())}


def identity(case: Case, made: Frames) -> Figures:
    """Colour distance to the reference, region by region."""
    found = {}
    for name in REGIONS:
        before, after = case.regions[name][:1], case.regions[name][1:]
        found[f"de_{name}"] = colour(made, case.reference.frames, after, before)
        found[f"de2000_{name}"] = colour(made, case.reference.frames, after, before, "2000")
    return {name: value for name, value in found.items() if not np.isnan(value)}


@dataclass(frozen=True, eq=False)
class Background:
    """What moves and what rests behind the person in the true clip.

    Attributes:
        seen: bool [F, H, W], away from the person.
        moving: bool [F, H, W], parts of it that move.
        still: likewise, that rest.
        energy: motion map [H, W] of the truth.
        speed: mean speed on the moving parts in the truth, pixels per frame.
    """

    seen: Mask
    moving: Mask
    still: Mask
    energy: Floats
    speed: float


def true_background(case: Case) -> Background:
    """The background of a case, from its truth."""
    seen = ~grown(case.truth.masks > 0, MARGIN_PX)
    scene = case.scene_alone()[1:].astype(int)
    change = (scene.max(0) - scene.min(0)).max(-1)  # [H, W]
    rests = ~grown(change[None] > RESTS, MARGIN_PX)[0]
    moving, still = seen & (change > MOVES), seen & rests
    truth = case.truth.frames
    energy = motion_map(truth, seen, BLUR_PX)
    return Background(seen, moving, still, energy, mean_where(speeds(optical_flow(truth)), steps_where(moving)))


def living(made: Frames, truth: Background) -> Figures:
    """How the background of a generated clip lives; empty figures are left out (nothing moves, or nothing rests)."""
    energy, speed = motion_map(made, truth.seen, BLUR_PX), speeds(optical_flow(made))
    known = ~(np.isnan(energy) | np.isnan(truth.energy))
    figures = {"energy": mean_where(energy, known), "true_energy": mean_where(truth.energy, known)}
    moves, rests = steps_where(truth.moving), steps_where(truth.still)
    if moves.sum() >= LEAST_REGION_PX and truth.speed > 0:
        fast = mean_where(speed, moves)
        figures |= {"speed": fast, "true_speed": truth.speed}
        match = map_correlation(energy, truth.energy)
        figures["map"] = 0.0 if np.isnan(match) else match  # a clip that rests where it should move matches nothing
    if rests.sum() >= LEAST_REGION_PX:
        figures["still_speed"] = mean_where(speed, rests)
    return figures


def frozen(case: Case) -> Frames:
    """The scene as the reference shows it, standing still; nobody is before it."""
    alone = case.scene_alone()
    return np.repeat(alone[:1], len(alone) - 1, axis=0)


def noise_of_equal_energy(case: Case, rng: np.random.Generator) -> Frames:
    """`frozen` with independent noise whose frame-to-frame difference equals the true scene's."""
    still = frozen(case)
    alone = case.scene_alone()[1:].astype(np.float32)
    strength = float(np.abs(np.diff(alone, axis=0)).mean()) * np.sqrt(np.pi) / 2
    return np.clip(np.round(still + rng.normal(0, strength, still.shape)), 0, 255).astype(np.uint8)


def loose_and_firm(case: Case) -> tuple[Mask, Mask]:
    """Bool [F, H, W] each: the parts of a person that swing, and the middle of the top, away from them."""
    loose = np.any([case.regions[name][1:] for name in loose_regions(case.spec)], axis=0)
    top = ~grown(~case.regions["top"][1:], 1)
    return loose, top & ~grown(loose, MARGIN_PX)


def means(rows: Sequence[Figures]) -> Figures:
    """Mean of each figure over the clips that have it."""
    values = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return {name: float(np.mean(value)) for name, value in values.items()}


def living_bars(rows: Sequence[Figures], scenes: Sequence[str], label: str = "") -> list[Bar]:
    """The bars of the living scene over all clips.

    Args:
        rows: what `living` gave, clip by clip.
        scenes: the kind of each clip's scene.
        label: goes before the bars' names.
    """
    moving = [row for row in rows if "speed" in row]
    match = float(np.mean([row["map"] for row in moving])) if moving else float("nan")
    made, true = (sum(row[name] for row in moving) for name in ("speed", "true_speed"))
    ratio = made / true if true else float("nan")
    per_clip = [row["speed"] / row["true_speed"] for row in moving]
    inside = float(np.mean([0.5 <= value <= 1.5 for value in per_clip])) if per_clip else float("nan")
    resting = [row["still_speed"] for row in rows if "still_speed" in row]
    still = float(np.mean(resting)) / (true / len(moving)) if moving and resting else float("nan")
    ranked, order = ranks_as_in_truth(rows, scenes)
    return [
        Bar(f"{label}motion map, correlation with truth", match, ">= 0.6", match >= 0.6, {"clips": len(moving)}),
        Bar(
            f"{label}flow on moving regions / truth's", ratio, "0.5 .. 1.5", 0.5 <= ratio <= 1.5,
            {"share of clips inside": inside},
        ),
        Bar(f"{label}flow on still regions / truth's on moving", still, "< 0.1", still < 0.1),
        Bar(
            f"{label}scene types ranked by motion as in truth", ranked, "1", None if np.isnan(ranked) else ranked == 1,
            order,
        ),
    ]  # fmt: skip


def ranks_as_in_truth(rows: Sequence[Figures], scenes: Sequence[str]) -> tuple[float, Figures]:
    """Share of pairs of scene types, of those whose true motion differs by a fifth or more, that rank as in truth.

    Returns:
        The share, NaN without such a pair, and each type's motion as "made / true".
    """
    kinds = sorted(set(scenes))
    figures = {kind: means([row for row, scene in zip(rows, scenes, strict=True) if scene == kind]) for kind in kinds}
    pairs = [
        (figures[a]["energy"] - figures[b]["energy"]) * (figures[a]["true_energy"] - figures[b]["true_energy"]) > 0
        for index, a in enumerate(kinds)
        for b in kinds[index + 1 :]
        if abs(figures[a]["true_energy"] - figures[b]["true_energy"])
        > 0.2 * max(figures[a]["true_energy"], figures[b]["true_energy"])
    ]
    order: Figures = {}
    for kind in kinds:
        order |= {kind: figures[kind]["energy"], f"{kind}, true": figures[kind]["true_energy"]}
    return float(np.mean(pairs)) if pairs else float("nan"), order
