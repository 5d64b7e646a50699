"""Comparing two methods: the arithmetic of the bootstrap, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_clips import add_grid_metric, put_set
from test_eval_score import run

from xdyna.cli import main
from xdyna.errors import UserError
from xdyna.infer.evaluate.compare import compare
from xdyna.infer.evaluate.resample import (
    centred,
    frechet_of_rows,
    holm,
    interval,
    mean_draws,
    normal_chance,
    sign_flip_chance,
)
from xdyna.infer.evaluate.results import Results
from xdyna.infer.evaluate.score import Scored
from xdyna.metrics.frechet import Moments, frechet_distance


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Method `made` is good, `worse` is clearly worse on every clip."""
    root = tmp_path_factory.mktemp("two")
    put_set(root, "abcdefghij", strength=4)
    put_set(root, "abcdefghij", strength=20, seed=50, method="worse")
    with pytest.MonkeyPatch.context() as patched:
        add_grid_metric(patched)
        return run(root, methods=("made", "worse"))


@pytest.fixture
def two(scored: Scored, tmp_path: Path) -> Path:
    """A copy of the results of both that a test may change."""
    return shutil.copy(scored.results.path, tmp_path / "two.jsonl")


@pytest.fixture
def one(scored: Scored, tmp_path: Path) -> Path:
    """Results of `made` alone."""
    lines = [json.loads(line) for line in scored.results.path.read_text().splitlines()]
    lines[0]["methods"].pop("worse")
    return write(tmp_path / "one.jsonl", [line for line in lines if line.get("method") != "worse"])


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_clear_difference_is_significant_and_nothing_is_not(two: Path) -> None:
    found = compare(f"{two}:made", f"{two}:worse", draws=2000, set_draws=60)
    rows = {row.name: row for row in found.rows}
    psnr = rows["psnr/all"]
    assert psnr.winner == "a"
    assert psnr.low < psnr.difference < psnr.high
    assert psnr.low > 0
    assert rows["l1/fg"].winner == "a", "lower is better there"
    assert rows["l1/fg"].difference < 0
    frechet = rows["grid-frechet/all"]
    assert frechet.low < frechet.difference < frechet.high
    assert frechet.difference < 0
    assert frechet.p is not None
    assert frechet.p < 0.3
    assert psnr.videos == 10
    same = compare(f"{two}:made", f"{two}:made", draws=200, set_draws=20)
    assert all(row.difference == 0 and row.winner == "" and row.p == 1 for row in same.rows)
    assert compare(f"{two}:made", f"{two}:worse", draws=2000, set_draws=60).rows == found.rows
    assert compare(f"{two}:made", f"{two}:worse", draws=2000, set_draws=60, seed=1).rows != found.rows


def test_distances_are_those_of_the_run(one: Path) -> None:
    row = next(row for row in compare(one, one, draws=100, set_draws=20).rows if row.name == "grid-frechet/fg")
    assert row.a == pytest.approx(Results.read(one).sets[0].values["grid-frechet/fg"], rel=1e-3)


def test_without_features_sets_have_no_interval(two: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in two.read_text().splitlines()]
    lines[0]["cache"] = str(tmp_path / "gone")
    write(two, lines)
    row = next(row for row in compare(f"{two}:made", f"{two}:worse", draws=100).rows if row.name == "grid-frechet/all")
    assert row.p is None
    assert "features are not in the cache" in row.note
    assert row.a == Results.read(two).sets[0].values["grid-frechet/all"]


def test_other_protocols_are_refused(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in one.read_text().splitlines()]
    lines[0]["protocol"]["config"]["fps"] = 25.0
    lines[0]["protocol_hash"] = "0" * 64
    other = write(tmp_path / "other.jsonl", lines)
    assert main(["eval", "compare", str(one), str(other)]) == 2
    error = capsys.readouterr().err
    assert "of v1:000000000000 (fps 12.0 and 25.0); numbers of different protocols are not compared" in error
    assert error.count("\n") == 1


def test_other_networks_are_left_out(one: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in one.read_text().splitlines()]
    lines[0]["metrics"]["grid-frechet"]["backbone"] = "grid"
    lines[0]["backbones"] = {"grid": "1"}
    mine = write(tmp_path / "mine.jsonl", lines)
    lines[0]["backbones"] = {"grid": "2"}
    found = compare(mine, write(tmp_path / "theirs.jsonl", lines), draws=100)
    assert not any(row.name.startswith("grid") for row in found.rows)
    assert "grid-frechet: left out, its network's weights differ between the two" in found.notes


def test_other_truths_and_other_clips_are_refused(one: Path, two: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    lines = [json.loads(line) for line in one.read_text().splitlines()]
    lines[1]["sha256"]["truth"] = "0" * 64
    with pytest.raises(UserError, match="clip a: its truth is another file in the two results"):
        compare(one, write(other, lines))
    for line in lines[1:]:
        if "clip" in line:
            line["clip"] = line["video"] = f"x{line.get('video', '')}"
    with pytest.raises(UserError, match="have no clip in common"):
        compare(one, write(other, lines))
    with pytest.raises(UserError, match=r"two.jsonl: holds made, worse; wanted one of them as .*two.jsonl:METHOD"):
        compare(two, one)
    with pytest.raises(UserError, match="has no method 'wors'; did you mean worse"):
        compare(f"{two}:wors", one)


def test_the_command_prints_and_writes(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "compare", f"{two}:made", f"{two}:worse", "--draws", "2000", "--set-draws", "20"]
    assert main([*command, "-o", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("psnr/all"))
    assert "A better" in row
    assert Results.read(two).protocol_label in row
    report = json.loads((tmp_path / "c.json").read_text())
    assert {row["name"] for row in report["rows"]} >= {"l1/all", "psnr/fg", "grid-frechet/bg"}
    assert report["seed"] == 0


def test_results_that_are_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        Results.read(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is not a file of results"):
        Results.read(path)
    path.write_text('{"header": true, "schema": 99}\n')
    with pytest.raises(UserError, match="schema 99, wanted 1"):
        Results.read(path)
    path.write_text('{"header": true, "schema": 1}\n{"clip"\n{}\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        Results.read(path)


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(6, 20), (60, 5), (20, 20)])
def test_frechet_of_rows_is_the_distance(count: int, size: int) -> None:
    rng = np.random.default_rng(count)
    made = rng.normal(0, 1, (count, size)).astype(np.float32)
    true = rng.normal(0.5, 2, (count + 3, size)).astype(np.float32)
    moments = Moments(), Moments()
    moments[0].add(made)
    moments[1].add(true)
    expected = frechet_distance(*moments)
    assert frechet_of_rows(made.astype(float), true.astype(float)) == pytest.approx(expected, rel=1e-6)


def test_intervals_of_the_mean_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = interval(mean_draws(rng.normal(1, 2, 40), 300, rng), 0.9)
        held += low <= 1 <= high
    assert 0.82 <= held / 200 <= 0.96


@pytest.mark.parametrize("videos", [7, 30])
def test_chances_without_a_difference_are_even(videos: int) -> None:
    rng = np.random.default_rng(0)
    chances = [sign_flip_chance(rng.normal(0, 1, videos), 400, rng) for _ in range(300)]
    assert 0.02 <= np.mean(np.asarray(chances) <= 0.05) <= 0.08
    assert 0.45 <= np.mean(chances) <= 0.57


def test_few_videos_are_never_significant() -> None:
    rng = np.random.default_rng(0)
    assert sign_flip_chance(np.asarray([1.0, 1.1, 0.9, 1.2]), 10_000, rng) == 2 / 16
    assert sign_flip_chance(np.zeros(5), 10_000, rng) == 1
    assert sign_flip_chance(rng.normal(3, 1, 40), 999, rng) == 1 / 1000


def test_a_normal_chance_is_that_of_the_tables() -> None:
    sample = np.random.default_rng(0).normal(7, 2, 100_000)
    assert normal_chance(sample, 3.92) == pytest.approx(0.05, abs=2e-3)
    assert centred(sample, 3.92).mean() == pytest.approx(3.92)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
