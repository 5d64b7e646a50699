"""How long a job still takes, told from what its parts have taken so far.

A job is counted in units: steps of each kind, frames to be written. What a unit of one kind takes is known once some of
it are done; for the others the ratios of the networks' operations stand in, scaled by what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from xdyna.windows import make_windows

if TYPE_CHECKING:
    from xdyna.configs.animate import AnimateConfig

# Operations relative to those of the UNet on one window for one half of guidance, at SD1.5's widths (counted).
_SHALLOW = 0.2  # its outermost layers alone
_CONTROL = 0.2  # a ControlNet on the frames that are new in a window
_ENCODE = 0.045  # the VAE on one frame
_DECODE = 0.1

_WRITE, _ENCODED = "write", "encode"


@dataclass(frozen=True)
class Part:
    """Work of one kind.

    Attributes:
        kind: its name.
        units: how many of it there are.
        prior: what one costs as long as none is measured, in a measure of its own that all parts share.
        group: of parts whose priors fit together better than others'.
    """

    kind: str
    units: float
    prior: float = 1.0
    group: str = ""


@dataclass
class _Measured:
    """What was measured of one kind. The first measurement stands apart: it holds what is only done once."""

    done: float = 0.0
    first_units: float = 0.0
    first_s: float = 0.0
    units: float = 0.0
    seconds: float = 0.0

    def add(self, units: float, seconds: float) -> None:
        self.done += units
        if self.first_units == 0:
            self.first_units, self.first_s = units, seconds
        else:
            self.units += units
            self.seconds += seconds

    def spent(self) -> tuple[float, float]:
        """Units and seconds to reckon with."""
        if self.units > 0:
            return self.units, self.seconds
        return self.first_units, self.first_s + self.seconds

    @property
    def is_sure(self) -> bool:
        """Whether more than the first was measured."""
        return self.units > 0

    def cost_s(self) -> float | None:
        units, seconds = self.spent()
        return seconds / units if units > 0 else None


class TimeLeft:
    """The arithmetic alone: no clock, no names of stages.

    Args:
        parts: all the work there is.
        known: seconds that a unit of a kind took in an earlier job of the same sort.
    """

    def __init__(self, parts: Iterable[Part], known: Mapping[str, float] | None = None) -> None:
        self._parts = {part.kind: part for part in parts}
        self._known = dict(known or {})
        self._measured = {kind: _Measured() for kind in self._parts}

    def did(self, kind: str, units: float, seconds: float) -> None:
        """Count work that was done, in the time it took; 0 units are time that belongs to those before."""
        self._measured[kind].add(units, seconds)

    def skip(self, kind: str, units: float) -> None:
        """Count work that took no time here: an earlier run did it, or, below 0, it is to be done again."""
        self._measured[kind].done += units

    def cost_s(self, kind: str) -> float | None:
        """Seconds that a unit takes; None while nothing at all is known."""
        measured = self._measured[kind]
        if measured.is_sure:
            return measured.cost_s()
        if kind in self._known:
            return self._known[kind]
        part = self._parts[kind]
        others = [other for other in self._parts.values() if other.kind != kind]
        scale = self._scale(other for other in others if other.group == part.group)
        scale = self._scale(others) if scale is None else scale
        return measured.cost_s() if scale is None else part.prior * scale

    def costs_s(self) -> dict[str, float]:
        """Of every kind that was measured, for `known` of the next job."""
        costs = {kind: measured.cost_s() for kind, measured in self._measured.items()}
        return {**self._known, **{kind: cost for kind, cost in costs.items() if cost is not None}}

    def left_s(self) -> float | None:
        """Seconds of work left; None while nothing at all is known."""
        return self._sum(lambda part: max(0.0, round(part.units - self._measured[part.kind].done, 6)))

    def total_s(self) -> float | None:
        """Seconds that all the work takes, what was done before included; None while nothing at all is known."""
        return self._sum(lambda part: part.units)

    def _sum(self, units: Callable[[Part], float]) -> float | None:
        total = 0.0
        for part in self._parts.values():
            if units(part) == 0:
                continue
            cost = self.cost_s(part.kind)
            if cost is None:
                return None
            total += units(part) * cost
        return total

    def _scale(self, parts: Iterable[Part]) -> float | None:
        """Seconds for each unit of the priors' measure."""
        seconds = prior = 0.0
        for part in parts:
            units, spent_s = self._measured[part.kind].spent()
            seconds += spent_s
            prior += part.prior * units
        return seconds / prior if prior > 0 else None


@dataclass(frozen=True)
class Outlook:
    """How a job stands.

    Attributes:
        share: of its work that is done, 0..1.
        left_s: seconds left.
        frames_per_s: frames of the result for each second of the work from the first step to the last frame.
    """

    share: float
    left_s: float
    frames_per_s: float


OnOutlook = Callable[[Outlook], None]


@runtime_checkable
class ShowsOutlook(Protocol):
    """What shows progress and, beside, how the whole job stands."""

    def outlook(self, outlook: Outlook) -> None:
        """Called whenever something of the job is done, before the progress of its stage is told."""


@dataclass
class JobWatch:
    """Follows a job from its first step to its last frame, and tells how it stands whenever something is done.

    Attributes:
        num_frames: of the result.
        steps: kind and prior of each denoising step, see `step_kinds`.
        tell: told after each event, once something can be said.
        known: seconds that a unit of a kind took in earlier jobs of the same sort; see `TimeLeft.costs_s`.
        clock: seconds.
    """

    num_frames: int
    steps: Sequence[tuple[str, float]]
    tell: OnOutlook = lambda outlook: None
    known: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        steps = [Part(kind, sum(1 for k, _ in self.steps if k == kind), prior, "denoise") for kind, prior in self.steps]
        writing = [Part(_ENCODED, 0, _ENCODE, "vae"), Part(_WRITE, self.num_frames, _DECODE, "vae")]
        self.time_left = TimeLeft([*steps, *writing], self.known)
        self._step, self._share, self._written = 0, 0.0, 0
        self._last_s = self.clock()

    def encoded(self, seconds: float) -> None:
        """The photo was encoded: from what that took it can be told what decoding takes."""
        self.time_left.did(_ENCODED, 1, seconds)

    def begin(self, step: int) -> None:
        """Denoising begins, or goes on after an earlier run, with this step."""
        for done in range(step):
            self.time_left.skip(self._kind(done), 1)
        self._step, self._share, self._last_s = step, 0.0, self.clock()
        self._say()

    def window(self, done: int, total: int) -> None:
        """So many of a step's windows are done; fewer than before where the step was begun again."""
        share = done / total
        if share <= self._share:
            self.time_left.skip(self._kind(self._step), -self._share)
            self._share = 0.0
        self._took(self._kind(self._step), share - self._share)
        self._share = share
        self._say()

    def step(self) -> None:
        """A step is done."""
        self._took(self._kind(self._step), 1 - self._share)
        self._step, self._share = self._step + 1, 0.0
        self._say()

    def written(self, num_frames: int) -> None:
        """So many frames of the result are written."""
        if num_frames > self._written:
            self._took(_WRITE, num_frames - self._written)
            self._written = num_frames
            self._say()

    def writing(self, on_progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
        """The same, with an eye on the frames that are written."""

        def watched(stage: str, done: int, total: int) -> None:
            if stage == _WRITE:
                self.written(done)
            on_progress(stage, done, total)

        return watched

    def _kind(self, step: int) -> str:
        return self.steps[min(step, len(self.steps) - 1)][0]  # some schedulers add a step

    def _took(self, kind: str, units: float) -> None:
        now_s = self.clock()
        self.time_left.did(kind, units, now_s - self._last_s)
        self._last_s = now_s

    def _say(self) -> None:
        left_s, total_s = self.time_left.left_s(), self.time_left.total_s()
        if left_s is not None and total_s:
            self.tell(Outlook(1 - min(1.0, left_s / total_s), left_s, self.num_frames / total_s))


def watch_job(
    config: AnimateConfig,
    num_frames: int,
    *,
    face: bool,
    schedule: str,
    on_progress: Any,
    known: Mapping[str, float],
) -> JobWatch:
    """The watch over a job; it tells `on_progress`, if that is a `ShowsOutlook`.

    Args:
        config: with preset and model's defaults filled in.
        num_frames: of the result.
        face: the face ControlNet runs.
        schedule: the model's own way to cut windows.
        on_progress: what shows the job's progress.
        known: costs of an earlier job of the same sort.
    """
    sampling = config.sampling()
    windows = make_windows(config.schedule or schedule, num_frames, sampling.window, sampling.overlap, 0)
    kinds = step_kinds(config, len(windows), face=face)
    tell = on_progress.outlook if isinstance(on_progress, ShowsOutlook) else lambda outlook: None
    return JobWatch(num_frames, kinds, tell, known)


def step_kinds(config: AnimateConfig, num_windows: int, *, face: bool) -> list[tuple[str, float]]:
    """Kind and prior cost of each step of a job: steps of one kind do the same work.

    Args:
        config: with preset and model's defaults filled in.
        num_windows: in a step.
        face: the face ControlNet runs.
    """
    fast, sampling = config.fast, config.sampling()
    ranges = [(config.pose_scale, config.pose_start, config.pose_end)]
    ranges += [(config.face_scale, config.face_start, config.face_end)] if face else []
    kinds = []
    for step in range(sampling.steps):
        begun, ended = step / sampling.steps, (step + 1) / sampling.steps
        halves = 2 if sampling.guidance > 1 and fast.guidance_from <= begun < fast.guidance_to else 1
        on = sum(scale != 0 and begun >= start and ended <= end for scale, start, end in ranges)
        nets = on if step % fast.residuals_every == 0 else 0
        shallow = step % fast.reuse_every > 0
        part = _SHALLOW if shallow else 1.0
        prior = num_windows * part * (halves + _CONTROL * nets)
        kinds.append((f"step {halves} {on} {nets} {'outer' if shallow else 'whole'}", prior))
    return kinds


def shown_time(seconds: float) -> str:
    """``8 min 32 s``: as much of it as matters."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
