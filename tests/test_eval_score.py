"""Scoring folders of videos: numbers, resuming, the cache, and what happens to bad pairs."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip
from eval_clips import HEIGHT, WIDTH, grid_metric, left_half, noisy, put_frames, put_set, true_clip
from torch import nn

from xdyna.cli import main
from xdyna.configs.evaluate import EvaluateConfig
from xdyna.errors import UserError
from xdyna.infer.evaluate import measure as measuring
from xdyna.infer.evaluate.pairs import pairs_by_name, pairs_of_manifest
from xdyna.infer.evaluate.protocol import load_protocol
from xdyna.infer.evaluate.results import Results
from xdyna.infer.evaluate.score import Scored, ScoreJob, score
from xdyna.metrics import registry
from xdyna.metrics.clips import isolated
from xdyna.metrics.frames import rows_of
from xdyna.metrics.psnr import psnr

__all__ = ["grid_metric"]
METRICS = ("psnr", "l1", "grid-frechet")


def run(root: Path, out: str = "results.jsonl", *, methods: tuple[str, ...] = ("made",), **config: object) -> Scored:
    allowed = bool(config.get("allow_failed"))
    pairs = {
        name: pairs_by_name(root / name, root / "truth", masks=root / "masks", allow_failed=allowed) for name in methods
    }
    settings = EvaluateConfig(**{"metrics": METRICS, **config})  # type: ignore[arg-type]
    folders = {name: root / name for name in methods}
    return score(ScoreJob(pairs, folders, root / out, load_protocol("v1"), settings))


@pytest.fixture
def clips(tmp_path: Path, grid_metric: str) -> Path:
    return put_set(tmp_path)


def numbers(scored: Scored) -> dict[tuple[str, str], float]:
    found = {(line.clip, key): value for line in scored.results.clips for key, value in line.values.items()}
    return found | {(line.method, key): value for line in scored.results.sets for key, value in line.values.items()}


def test_values_are_those_of_the_functions(clips: Path) -> None:
    scored = run(clips)
    truth = true_clip(101)
    made = noisy(truth, 9.0, 1)
    found = numbers(scored)
    assert found["b", "psnr/all"] == psnr(made, truth)
    assert found["b", "psnr/fg"] == psnr(made, truth, left_half())
    assert found["b", "psnr/bg"] == psnr(made, truth, left_half() == 0)
    assert found["made", "grid-frechet/all"] > 0
    assert scored.problems == ()
    line = scored.results.sets[0]
    assert (line.n["grid-frechet/all"], line.clips["grid-frechet/all"]) == (64, 4)


def test_header_says_by_what_the_numbers_came(clips: Path) -> None:
    header = run(clips).results.header
    protocol = load_protocol("v1")
    assert header["protocol_hash"] == protocol.hash
    assert header["protocol"]["config"]["fps"] == 12
    assert header["protocol"]["versions"]["av"]
    assert header["metrics"]["psnr"]["better"] == "higher"


@pytest.mark.parametrize("other", [{"workers": 3}, {"threads": 2}])
def test_workers_and_threads_change_nothing(clips: Path, other: dict[str, int]) -> None:
    one = numbers(run(clips, "one.jsonl", workers=1, threads=1, cache=clips / "one"))
    two = numbers(run(clips, "two.jsonl", cache=clips / "two", **other))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-3 if "frechet" in key[1] else 1e-5), key


def test_a_networks_batches_and_threads_change_nothing(
    tmp_path: Path, grid_metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_set(tmp_path, "ab")
    layers = (nn.Conv2d(3, 8, 5), nn.SiLU(), nn.Conv2d(8, 12, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*layers).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 5

    def frechet(pictures: int, count: int, name: str) -> dict[str, float]:
        def features(frames: Any, masks: Any, region: Any, backbone: Any) -> Any:
            return rows_of(isolated(frames, masks, region), network, pictures)

        metric = replace(registry.METRICS["grid-frechet"], features=features)  # type: ignore[call-arg]
        monkeypatch.setitem(registry.METRICS, "grid-frechet", metric)  # type: ignore[arg-type]
        scored = run(tmp_path, f"{name}.jsonl", threads=count, metrics=("grid-frechet",))
        return dict(scored.results.sets[0].values)

    one, two = frechet(16, 1, "one"), frechet(9, 2, "two")
    assert one.keys() == {"grid-frechet/all", "grid-frechet/fg", "grid-frechet/bg"}
    assert all(value > 0 for value in one.values())
    assert two == pytest.approx(one, rel=1e-3)


def test_a_killed_run_goes_on_with_the_same_numbers(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(clips, "whole.jsonl", cache=clips / "whole")
    calls = []

    def until_third(*args: Any, **kwargs: Any) -> measuring.Measured:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measuring.measure(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr("xdyna.infer.evaluate.crew.measure", until_third)
        with pytest.raises(KeyboardInterrupt):
            run(clips)
    with (clips / "results.jsonl").open("a") as file:
        file.write('{"clip": "c", "values": {"psn')  # the line at which it was killed
    assert [line.clip for line in Results.read(clips / "results.jsonl").clips] == ["a", "b"]
    asked = count_reads(monkeypatch)
    assert numbers(run(clips)) == numbers(whole)
    assert len(asked) == 2, "only what was left was read"
    assert len(Results.read(clips / "results.jsonl").clips) == 4
    run(clips)
    assert len(asked) == 2, "a finished run reads no video again"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pairs whose frames are read from now on."""
    asked: list[str] = []
    original = measuring.OpenedPair.samples

    def samples(self: measuring.OpenedPair) -> object:
        asked.append(self.pair.name)
        return original(self)

    monkeypatch.setattr(measuring.OpenedPair, "samples", samples)
    return asked


def test_a_changed_video_is_measured_again(clips: Path) -> None:
    before = numbers(run(clips))
    frame = next((clips / "made" / "b").iterdir())
    frame.write_bytes((clips / "made" / "c" / frame.name).read_bytes())
    after = numbers(run(clips))
    assert {key for key, value in before.items() if after[key] != value} == {
        key for key in before if key[0] in ("b", "made") and not (key[1].startswith("grid") and key[0] == "b")
    }
    assert after.keys() == before.keys()


def test_damaged_features_are_made_anew(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numbers(run(clips))
    files = sorted((clips / "results.features").rglob("*.features"))
    assert len(files) == 4 * 3 * 2
    for number, file in enumerate(files[:6]):
        data = bytearray(file.read_bytes())
        data[len(data) // 2 if number % 2 else -1] ^= 0xFF
        file.write_bytes(bytes(data) if number != 4 else b"")
    asked = count_reads(monkeypatch)
    assert numbers(run(clips)) == before
    assert 1 <= len(asked) <= 4
    assert numbers(run(clips, "again.jsonl", cache=clips / "results.features")) == before


def test_another_protocol_or_metric_is_another_run(clips: Path) -> None:
    run(clips)
    with pytest.raises(UserError, match=r"results.jsonl: holds another run \(other metrics: l1\); name another --out"):
        run(clips, metrics=("psnr", "grid-frechet"))


def test_protocols_of_other_content_have_other_hashes(tmp_path: Path) -> None:
    text = Path("configs/protocol/v1.yaml").read_text()
    changed = tmp_path / "v2.yaml"
    changed.write_text(text.replace("fps: 12 ", "fps: 13 "))
    same = tmp_path / "same.yaml"
    same.write_text("\n".join(reversed([line.split("#")[0] for line in text.splitlines()])))
    assert load_protocol(same).hash == load_protocol("v1").hash
    assert load_protocol(changed).hash != load_protocol("v1").hash
    changed.write_text(text + "fsp: 12\n")
    with pytest.raises(UserError, match=r"unknown key 'fsp'; did you mean fps"):
        load_protocol(changed)
    changed.write_text(text.replace("seed: 0", ""))
    with pytest.raises(UserError, match="key 'seed' is missing"):
        load_protocol(changed)


def test_the_hash_is_of_library_versions_too() -> None:
    protocol = load_protocol("v1")
    other = type(protocol)(protocol.config, {**protocol.versions, "av": "17.0.0"})
    assert other.hash != protocol.hash


# --- bad input --------------------------------------------------------------------------------------------------------


def test_names_without_a_partner_are_listed(clips: Path) -> None:
    put_frames(clips / "made" / "extra", true_clip(1))
    (clips / "truth" / "d").rename(clips / "truth" / "z")
    (clips / "masks" / "d").rename(clips / "masks" / "z")
    with pytest.raises(UserError, match=r"holds 5 clips and .*truth 4.*d \(generated alone\), extra \(gen.*z \(truth"):
        run(clips)
    scored = run(clips, allow_failed=True)
    assert [line.clip for line in scored.results.clips] == ["a", "b", "c"]
    assert [line.video for line in scored.results.failed] == ["d", "extra", "z"]


def test_other_lengths_are_listed(clips: Path) -> None:
    for extra in (16, 17):
        (clips / "made" / "c" / f"{extra:06d}.png").write_bytes((clips / "made" / "c" / "000000.png").read_bytes())
    scored = run(clips)
    assert [line.clip for line in scored.results.clips] == ["a", "b", "d"]
    assert len(scored.problems) == 1
    assert "made/c: has 18 frames at 12 fps and its truth" in scored.problems[0]


def test_masks_of_another_size_are_listed(clips: Path) -> None:
    for file in (clips / "masks" / "b").iterdir():
        file.unlink()
    (clips / "masks" / "b").rmdir()
    put_frames(clips / "masks" / "b", left_half(size_wh=(WIDTH, HEIGHT + 8)))
    scored = run(clips)
    assert [line.clip for line in scored.results.clips] == ["a", "c", "d"]
    assert "masks/b: is 24x40 px and the clip it belongs to 24x32 px; wanted one size" in scored.problems[0]


def test_one_corrupt_video_among_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("made", "truth"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            make_clip(tmp_path / folder / f"{name}.mp4", 20, 12, (48, 32))
    broken = tmp_path / "made" / "b.mp4"
    broken.write_bytes(broken.read_bytes()[:300])
    command = ["eval", "score", "--generated", str(tmp_path / "made"), "--reference", str(tmp_path / "truth")]
    command += ["--metrics", "psnr,ssim", "-o", str(tmp_path / "r.jsonl")]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "made: b: " in shown.err
    assert "b.mp4: not a readable video" in shown.err
    assert "2 clips, 1 pairs failed" in shown.out
    assert "psnr/all" in shown.out
    assert shown.out.count("v1:") >= 3, "the protocol stands beside every number"
    assert main([*command, "--allow-failed"]) == 0
    capsys.readouterr()
    assert main([*command, "--allow-failed", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["methods"]["made"]["figures"]["psnr/all"]["clips"] == 2
    assert [entry["video"] for entry in report["failed"]] == ["b"]


def test_gif_is_refused_by_v1(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "truth").mkdir()
    frames = [*true_clip(0, 20)]
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    for folder in ("made", "truth"):
        path = tmp_path / folder / "a.gif"
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80)
    pairs = {"made": pairs_by_name(tmp_path / "made", tmp_path / "truth")}
    config = EvaluateConfig(metrics=("psnr",))
    with pytest.raises(UserError, match=r"a.gif: is a GIF .* give the same clip as MP4 or as a folder of PNG files"):
        score(ScoreJob(pairs, {}, tmp_path / "r.jsonl", load_protocol("v1"), config))
    taken = tmp_path / "gif.yaml"
    taken.write_text(Path("configs/protocol/v1.yaml").read_text().replace("gif: refuse", "gif: frames"))
    scored = score(ScoreJob(pairs, {}, tmp_path / "g.jsonl", load_protocol(taken), config))
    assert scored.results.clips[0].values["psnr/all"] == np.inf


def test_too_few_clips_for_a_frechet_distance_and_features_that_are_not_finite(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval_clips import grid_features

    metric = registry.METRICS["grid-frechet"]

    def broken(frames: object, masks: object, region: str, backbone: object) -> object:
        features = grid_features(frames, masks, region, backbone)[:2]  # type: ignore[arg-type]
        if frames[0, 0, 0].tolist() == true_clip(102)[0, 0, 0].tolist():  # type: ignore[index]
            features[1, 3] = np.nan
        return features

    monkeypatch.setitem(registry.METRICS, metric.name, replace(metric, features=broken))  # type: ignore[arg-type]
    scored = run(clips)
    line = scored.results.sets[0]
    assert line.clips["grid-frechet/all"] == 3
    assert "c: true grid-frechet/all: 1 of 2 feature vectors hold NaN" in scored.problems[0]
    assert any("grid-frechet/all, 3 clips: 6 feature vectors of length 12" in note for note in scored.notes)
    assert len(scored.results.clips) == 4, "the clip's other figures stand"


def test_no_face_anywhere_is_told(clips: Path) -> None:
    for name in "abcd":
        for file in (clips / "masks" / name).iterdir():
            file.write_bytes(b"")
            file.unlink()
        (clips / "masks" / name).rmdir()
        put_frames(clips / "masks" / name, np.zeros((16, HEIGHT, WIDTH), np.uint8))
    scored = run(clips)
    assert any("psnr/fg has a value in none of 4 clips" in note for note in scored.notes)
    assert np.isnan(scored.results.clips[0].values["psnr/fg"])
    assert "NaN" not in (clips / "results.jsonl").read_text()


def test_metrics_that_lack_something_are_left_out_by_name(clips: Path) -> None:
    scored = run(clips, metrics=("psnr", "pck-synth"))
    assert list(scored.results.header["metrics"]) == ["psnr"]
    assert scored.results.header["missing"]["pck-synth"] == "needs tracks, which no pair has"
    with pytest.raises(UserError, match="did you mean psnr"):
        run(clips, "x.jsonl", metrics=("psrn",))


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_clips(clips: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    pairs = pairs_by_name(clips / "made", clips / "truth", masks=clips / "masks")
    many = [replace(pair, name=f"{pair.name}{number}") for number in range(8) for pair in pairs]
    arrays: list[weakref.ref[Any]] = []
    original = measuring.windows

    def watched(*args: Any) -> Any:
        for clip in original(*args):
            arrays.append(weakref.ref(clip))
            yield clip

    monkeypatch.setattr(measuring, "windows", watched)
    alive = []
    job = ScoreJob(
        {"made": many}, {}, clips / "r.jsonl", load_protocol("v1"), EvaluateConfig(metrics=METRICS, workers=workers)
    )
    score(job, lambda stage, done, total: alive.append(sum(array() is not None for array in arrays)))
    assert len(arrays) == 3 * 32, "generated, true and masks of every pair"
    assert len(alive) == 32
    assert max(alive) <= 3 * workers, "no more clips in memory than are measured at once"


def test_clips_of_a_long_video_do_not_overlap_and_are_drawn_by_the_seed(tmp_path: Path) -> None:
    put_frames(tmp_path / "truth" / "long", true_clip(0, 90))
    put_frames(tmp_path / "made" / "long", noisy(true_clip(0, 90), 5, 0))
    pairs = {"made": pairs_by_name(tmp_path / "made", tmp_path / "truth")}
    job = ScoreJob(pairs, {}, tmp_path / "r.jsonl", load_protocol("v1"), EvaluateConfig(metrics=("psnr",)))
    lines = score(job).results.clips
    starts = [line.start for line in lines]
    assert len(starts) == 4
    assert all(b - a >= 16 for a, b in pairwise(starts))
    assert starts[-1] + 16 <= 90
    assert [line.clip for line in lines] == [f"long@{start}" for start in starts]
    at = starts[1]
    expected = psnr(noisy(true_clip(0, 90), 5, 0)[at : at + 16], true_clip(0, 90)[at : at + 16])
    assert lines[1].values["psnr/all"] == expected


def test_a_truth_of_another_shape_is_cut_to_the_videos(tmp_path: Path) -> None:
    truth = true_clip(0, size_wh=(24, 48))
    masks = left_half(size_wh=(24, 48))
    masks[:, :8] = masks[:, 40:] = 255  # what is cut off
    put_frames(tmp_path / "truth" / "a", truth)
    put_frames(tmp_path / "masks" / "a", masks)
    put_frames(tmp_path / "made" / "a", truth[:, 8:40])
    put_frames(tmp_path / "large" / "a", truth[:, 8:40].repeat(2, 1).repeat(2, 2))
    for method in ("made", "large"):
        (line,) = run(tmp_path, f"{method}.jsonl", methods=(method,), metrics=("psnr",)).results.clips
        assert line.values["psnr/all"] == np.inf, "doubled and made smaller by areas, it is the same again"
    text = Path("configs/protocol/v1.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("crop: centre", "crop: refuse"))
    pairs = {"made": pairs_by_name(tmp_path / "made", tmp_path / "truth")}
    job = ScoreJob(pairs, {}, tmp_path / "r.jsonl", load_protocol(other), EvaluateConfig(metrics=("psnr",)))
    with pytest.raises(UserError, match="truth/a: is 24x48 px and not of the shape of 24x32; protocol v1 takes"):
        score(job)
    other.write_text(text.replace("size: null", "size: 12x12"))
    sized = score(replace(job, protocol=load_protocol(other), out=tmp_path / "s.jsonl"))
    assert sized.results.clips[0].values["psnr/all"] == np.inf


def test_manifest_of_the_common_jobs(clips: Path) -> None:
    jobs = [
        {"ref": f"truth/{name}/000000.png", "pose_video": f"truth/{name}", "output": f"{name}.mp4",
         "masks": f"masks/{name}", "scene": "sea", "steps": 3} for name in "ab"
    ]  # fmt: skip
    (clips / "jobs.json").write_text(json.dumps(jobs))
    pairs = pairs_of_manifest(clips / "jobs.json", clips / "made")
    assert [pair.name for pair in pairs] == ["a", "b"]
    config = EvaluateConfig(metrics=METRICS)
    scored = score(ScoreJob({"m": pairs}, {}, clips / "m.jsonl", load_protocol("v1"), config))
    by_name = numbers(run(clips))
    assert all(by_name[line.clip, key] == v for line in scored.results.clips for key, v in line.values.items())
    assert {line.scene for line in scored.results.clips} == {"sea"}
    jobs[0]["mask"] = "x"
    (clips / "jobs.json").write_text(json.dumps(jobs))
    with pytest.raises(UserError, match="unknown key 'mask'; did you mean masks"):
        pairs_of_manifest(clips / "jobs.json", clips / "made")
