"""The time left is told from what the work took so far, and is right within a fifth after a tenth of the work."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from animate_inputs import make_driver, make_photo
from rich.console import Console

from xdyna.cli import common
from xdyna.cli.animate import jobs_left
from xdyna.configs.animate import AnimateConfig
from xdyna.infer.animate import AnimateJob
from xdyna.infer.session import Session
from xdyna.infer.time_left import JobWatch, Outlook, Part, ShowsOutlook, TimeLeft, shown_time, step_kinds


def config(**settings: Any) -> AnimateConfig:
    known = {"size": "896x512", "steps": 25, "guidance": 7.5, "window": 16, "overlap": 4}
    return AnimateConfig.model_validate({**known, **settings})


class Simulated:
    """A job on a clock of its own: what each unit takes is drawn about what it costs on this machine.

    Args:
        settings: of the job.
        num_frames, num_windows: of it.
        costs: seconds of a UNet window for one half, its outermost layers' share, a ControlNet's, and of a frame to
            decode and write.
        encode_s: to encode the photo; None where that was done for an earlier job.
        spread: of what a unit takes, as a share (log-normal).
        warm_up_s: that the first window, and the first frame, take on top.
    """

    def __init__(
        self,
        settings: AnimateConfig,
        num_frames: int,
        num_windows: int,
        *,
        costs: tuple[float, float, float, float] = (1.0, 0.2, 0.2, 0.1),
        encode_s: float | None = 0.045,
        spread: float = 0.15,
        warm_up_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.now_s = 0.0
        self.told: list[tuple[float, Outlook]] = []  # when it was said
        self.rng, self.spread = np.random.default_rng(seed), spread
        kinds = step_kinds(settings, num_windows, face=True)
        self.watch = JobWatch(
            num_frames, kinds, lambda outlook: self.told.append((self.now_s, outlook)), clock=lambda: self.now_s
        )
        unet, outer, control, write = costs
        if encode_s is not None:
            self.watch.encoded(encode_s)
        self.watch.begin(0)
        for number, (kind, _) in enumerate(kinds):
            _, halves, _, nets, depth = kind.split()
            window = unet * (outer if depth == "outer" else 1) * (int(halves) + control * int(nets))
            for done in range(num_windows):
                self.take(window + (warm_up_s if number == done == 0 else 0))
                self.watch.window(done + 1, num_windows)
            self.take(window * 0.05)  # the scheduler, and saving
            self.watch.step()
        for done in range(num_frames):
            self.take(write + (warm_up_s if done == 0 else 0))
            self.watch.written(done + 1)

    def take(self, seconds: float) -> None:
        self.now_s += seconds * float(np.exp(self.spread * self.rng.standard_normal() - self.spread**2 / 2))

    def errors_s(self, after: float, to: float) -> list[tuple[float, float]]:
        """How wrong each estimate was between two shares of the time, and what was really left."""
        whole_s = self.now_s
        between = [(at_s, outlook) for at_s, outlook in self.told if after * whole_s <= at_s <= to * whole_s]
        return [(abs(outlook.left_s - (whole_s - at_s)), whole_s - at_s) for at_s, outlook in between]


JOBS: dict[str, Callable[[int], Simulated]] = {
    "exact": lambda seed: Simulated(config(), 192, 16, warm_up_s=10, seed=seed),
    "noisy": lambda seed: Simulated(config(), 64, 5, spread=0.3, warm_up_s=5, seed=seed),
    "slow VAE": lambda seed: Simulated(config(steps=10), 192, 16, costs=(1, 0.2, 0.2, 0.6), encode_s=0.27, seed=seed),
    "slow VAE, unlike its encoder": lambda seed: Simulated(
        config(steps=10), 192, 16, costs=(1, 0.2, 0.2, 0.4), encode_s=0.24, seed=seed
    ),
    "photo of an earlier job": lambda seed: Simulated(config(), 192, 16, encode_s=None, seed=seed),
    "balanced": lambda seed: Simulated(
        config(steps=12, fast={"guidance_to": 0.5, "residuals_every": 2}), 100, 8, warm_up_s=5, seed=seed
    ),
    "fast, cheaper than its count": lambda seed: Simulated(
        config(steps=10, fast={"guidance_to": 0.4, "reuse_every": 2, "residuals_every": 2}), 192, 16,
        costs=(1, 0.3, 0.1, 0.1), warm_up_s=5, seed=seed,
    ),
    "ControlNets for half of the steps": lambda seed: Simulated(
        config(pose_end=0.5, face_start=0.5), 100, 8, costs=(1, 0.2, 0.35, 0.1), seed=seed
    ),
    "one step": lambda seed: Simulated(
        config(steps=1, guidance=1), 400, 33, costs=(1, 0.2, 0.2, 0.05), encode_s=0.02, seed=seed
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_right_within_a_fifth_after_a_tenth_of_the_work(name: str) -> None:
    for seed in range(5):
        job = JOBS[name](seed)
        assert max(error / left for error, left in job.errors_s(0.1, 0.5)) < 0.2
        # Later on little is left, and what the first frame to be written takes on top is no small part of it.
        assert max(error for error, _ in job.errors_s(0.5, 1)) < 0.15 * job.now_s


def test_this_is_better_than_the_share_of_steps() -> None:
    """The plain way, from the share of steps, is off by half where steps differ."""
    job = JOBS["fast, cheaper than its count"](0)
    at_s = next(at_s for at_s, _ in job.told if at_s > 0.1 * job.now_s)
    windows = sum(1 for told_s, _ in job.told if told_s <= at_s)
    assert abs(at_s * (170 / windows - 1) / (job.now_s - at_s) - 1) > 0.5


def test_what_is_shown_ends_where_the_work_does() -> None:
    job = JOBS["exact"](1)
    _, last = job.told[-1]
    assert (last.share, last.left_s) == (1.0, 0.0)
    shares = [outlook.share for _, outlook in job.told]
    assert np.diff(shares).min() > -0.02
    pace = 192 / (job.now_s - 20)  # without both warm-ups
    assert last.frames_per_s == pytest.approx(pace, rel=0.05)


def test_nothing_is_said_before_something_is_known() -> None:
    told: list[Outlook] = []
    watch = JobWatch(4, [("step", 1.0)] * 3, told.append, clock=iter(range(99)).__next__)
    watch.begin(0)
    assert told == []
    watch.window(1, 2)
    assert len(told) == 1


def test_a_resumed_job_counts_what_is_left() -> None:
    clock = iter([0.0, 0.0, 10.0, 20.0]).__next__
    told: list[Outlook] = []
    watch = JobWatch(10, [("step", 1.0)] * 4, told.append, {"write": 1.0}, clock)
    watch.begin(2)
    watch.step()
    watch.step()
    first, second = told
    assert first.left_s == pytest.approx(10 + 10)
    assert first.share == pytest.approx(30 / 50)
    assert first.frames_per_s == pytest.approx(10 / 50)
    assert second.left_s == pytest.approx(10)


def test_a_step_that_is_begun_again_is_not_counted_twice() -> None:
    clock = iter([0.0, 0.0, 5.0, 10.0, 30.0, 35.0, 40.0, 45.0]).__next__
    told: list[Outlook] = []
    watch = JobWatch(1, [("step", 1.0)] * 2, told.append, {"write": 0.0}, clock)
    watch.begin(0)
    for done in (1, 2, 1, 2, 3, 4):  # out of memory after half of the step
        watch.window(done, 4)
    assert told[2].left_s > told[1].left_s
    assert told[-1].left_s == pytest.approx(watch.time_left.cost_s("step"))


def test_the_first_of_a_kind_is_left_out_once_there_are_others() -> None:
    left = TimeLeft([Part("a", 10)])
    assert left.left_s() is None
    left.did("a", 1, 100.0)
    assert left.left_s() == 900
    left.did("a", 2, 4.0)
    assert left.left_s() == 14
    left.did("a", 0, 2.0)
    assert left.left_s() == 21
    assert left.costs_s() == {"a": 3.0}


def test_priors_stand_in_for_what_is_not_measured() -> None:
    parts = [Part("a", 2, 1.0, "x"), Part("b", 2, 3.0, "x"), Part("c", 1, 10.0, "y"), Part("d", 1, 1.0, "y")]
    left = TimeLeft(parts)
    left.did("a", 1, 2.0)
    assert [left.cost_s(kind) for kind in "abcd"] == [2, 6, 20, 2]
    left.did("d", 1, 5.0)
    assert left.cost_s("c") == 50
    left.did("a", 1, 2.0)
    assert left.left_s() == 0 + 12 + 50
    assert TimeLeft(parts, {"c": 7.0}).cost_s("c") == 7


def test_kinds_of_steps() -> None:
    kinds = step_kinds(config(steps=4, fast={"guidance_to": 0.5, "reuse_every": 2}), 3, face=False)
    names, priors = zip(*kinds, strict=True)
    assert names == ("step 2 1 1 whole", "step 2 1 1 outer", "step 1 1 1 whole", "step 1 1 1 outer")
    assert priors == pytest.approx((6.6, 1.32, 3.6, 0.72))
    assert len(set(step_kinds(config(), 3, face=True))) == 1
    ends = step_kinds(config(steps=2, pose_end=0.5), 1, face=True)
    assert [kind for kind, _ in ends] == ["step 2 2 2 whole", "step 2 1 1 whole"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (512, "8 min 32 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_shown_time(seconds: float, text: str) -> None:
    assert shown_time(seconds) == text


# --- shown -------------------------------------------------------------------------------------------------------


def test_plain_lines_tell_of_the_whole_job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter(range(0, 1000, 4))
    monkeypatch.setattr(common.time, "monotonic", lambda: float(next(now_s)))
    common.start_talk()
    shown = common.PlainProgress()
    shown("denoise", 0, 10)
    for window in range(1, 5):
        shown.outlook(Outlook(window / 40, 700 - 10 * window, 0.123))
    shown("denoise", 1, 10)
    shown("denoise", 10, 10)
    shown.outlook(Outlook(1.0, 0.0, 0.125))
    shown("write", 7, 7)
    assert capsys.readouterr().out.splitlines() == [
        "denoise: 0/10, 8 % of the job, 0.123 frames/s, 11 min 10 s left",
        "denoise: 10/10, 10 % of the job, 0.123 frames/s, 11 min 00 s left",
        "write: 7/7",
    ]


def test_the_bar_tells_of_the_whole_job(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, legacy_windows=False)
    monkeypatch.setattr("rich.console.Console", lambda: console)
    monkeypatch.setattr(common.sys.stdout, "isatty", lambda: True, raising=False)
    with common.progress() as shown:
        assert isinstance(shown, ShowsOutlook)
        shown("pose", 4, 4)
        shown("denoise", 1, 10)
        shown.outlook(Outlook(0.37, 512, 0.42))
        shown("denoise", 2, 10)
    text = console.file.getvalue()
    assert "2/10" in text
    assert "whole job, %" in text
    assert "37/100" in text
    assert "0.42 frames/s, 8 min 32 s left" in text


def test_jobs_of_a_manifest_tell_what_is_left() -> None:
    done = [{"seconds": 50.0}, {"error": "no such file"}, {"seconds": 70.0}, {"skipped": True}]
    assert jobs_left(done, 5, 1) == " (about 5 min 00 s for what is left)"
    assert jobs_left(done, 5, 2) == " (about 2 min 30 s for what is left)"
    assert jobs_left(done[1:2], 5, 1) == jobs_left(done, 0, 1) == ""


class Listener:
    """Takes progress and outlooks."""

    def __init__(self) -> None:
        self.outlooks: list[Outlook] = []
        self.stages: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.append(stage)

    def outlook(self, outlook: Outlook) -> None:
        self.outlooks.append(outlook)


def test_a_session_tells_of_windows_steps_and_frames(tiny_folder: Path, tmp_path: Path) -> None:
    photo, driver = make_photo(tmp_path / "photo.png"), make_driver(tmp_path / "dance.mp4", 12)
    settings = AnimateConfig(model=str(tiny_folder), frames=12, steps=2, window=4, overlap=1)
    job = AnimateJob(photo, driver, tmp_path / "out.gif", settings)
    with Session() as session:
        first, again = Listener(), Listener()
        session.run(job, first)
        session.run(job, again)
    windows, steps = 4, 2
    # The photo's encoding is known when the first step begins; in the second job so is all the rest.
    for heard in (first, again):
        counts = len([outlook for outlook in heard.outlooks if outlook.left_s > 0])
        assert counts >= 1 + steps * (windows + 1)
        assert (heard.outlooks[-1].left_s, heard.outlooks[-1].share) == (0, 1)
    assert first.outlooks[0].share == again.outlooks[0].share == 0
