"""The ablation through its command: records, going on, refusals, and the page's statistics."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from xdyna.cli import main
from xdyna.configs import PRESETS, load_config
from xdyna.configs.ablation import AblationConfig
from xdyna.errors import UserError
from xdyna.infer.evaluate.records import cells
from xdyna.infer.load import EMBEDDED
from xdyna.train.ablation import Workshop

PLAN: dict[str, Any] = {
    "base": str(EMBEDDED),
    "clips": 2,
    "train": {
        "steps": 1, "batch": 1, "frames": 2, "warmup": 0, "validate_clips": 0, "sample_every": 0, "workers": 0,
        "world": {"framings": {"full": 1.0}},
    },
    "methods": [
        {
            "name": "ours", "label": "ours", "recipe": "dynamics_adapter", "seeds": [0],
            "train": {"trains": ["dynamics_adapter"]},
        },
        {
            "name": "other", "label": "image tokens", "recipe": "ip_adapter", "seeds": [0],
            "train": {"trains": ["image_prompt"]},
        },
    ],
    "figures": [{"key": "psnr/fg", "label": "PSNR"}, {"key": "motion-energy/bg", "label": "motion"}],
    "strip": ["00-self"],
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a plan of two runs was carried out in two calls."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    assert ablation(folder, "--runs", "1") == 0
    assert [path.name for path in (folder / "records").iterdir()] == ["ours-0.json"]
    assert "Runs still to do: 1." in (folder / "page.md").read_text()
    assert ablation(folder, "--resume") == 0
    return folder


def ablation(folder: Path, *options: str) -> int:
    """`xdyna bench ablation` in a folder of its own."""
    return main([
        "bench", "ablation", "--plan", str(folder / "plan.yaml"), "--records", str(folder / "records"),
        "--work", str(folder / "work"), "--page", str(folder / "page.md"), "--picture", str(folder / "strip.png"),
        *options,
    ])  # fmt: skip


@pytest.mark.recipe
def test_every_run_leaves_a_record_and_the_page_shows_them(done: Path) -> None:
    records = {path.stem: json.loads(path.read_text()) for path in (done / "records").iterdir()}
    assert set(records) == {"ours-0", "other-0"}
    for record in records.values():
        assert record["training"]["steps"] == 1
        assert len(record["clips"]) == 2
        assert all(np.isfinite(clip["values"]["psnr/fg"]) for clip in record["clips"].values())
    page = (done / "page.md").read_text()
    mean = np.mean([clip["values"]["psnr/fg"] for clip in records["ours-0"]["clips"].values()])
    assert f"| PSNR ↑ | {mean:.3g} [" in page
    assert "Runs still to do: 0." in page
    assert "1 seed, no spread known" in page
    strip = cv2.imread(str(done / "strip.png"))
    assert strip.shape == (96 * 5, 64 * 4, 3)  # reference, pose, truth and two methods; four frames


@pytest.mark.recipe
def test_records_of_another_plan_are_refused_and_named(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ablation(done) == 2
    assert "--resume" in capfd.readouterr().err
    other = {**PLAN, "train": {**PLAN["train"], "lr": 1e-4}}
    (done / "plan.yaml").write_text(yaml.safe_dump(other))
    try:
        assert ablation(done, "--resume") == 2
        assert "ours-0.json: was run under another plan (other train)" in capfd.readouterr().err
    finally:
        (done / "plan.yaml").write_text(yaml.safe_dump(PLAN))


def test_the_shipped_plan_gives_every_method_the_same_budget() -> None:
    plan = load_config(AblationConfig, PRESETS / "ablation" / "plan.yaml")
    assert {method.name: len(method.seeds) for method in plan.methods} == {
        "dynamics_adapter": 3, "reference_net": 3, "ip_adapter": 3, "no_data_fusion": 1, "no_face": 1,
    }  # fmt: skip
    assert len(Workshop(plan, Path("records"), Path("work")).trials()) == 11


@pytest.mark.parametrize(
    ("method", "message"),
    [({"steps": 2}, "train sets steps"), ({"base": "x"}, "train sets base"), ({"speed": 1}, "speed")],
)
def test_a_method_cannot_change_the_terms(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    ours = {**PLAN["methods"][0], "train": method}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "methods": [ours]}))
    with pytest.raises(UserError, match=message):
        load_config(AblationConfig, tmp_path / "plan.yaml")


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(60):
        values = {name: rng.normal(mean, 1, 30) for name, mean in (("ours", 20.0), ("other", 21.0))}
        row = cells({name: [record(found)] for name, found in values.items()}, "psnr/fg")
        against = row["other"].against
        assert against is not None
        held += against[1] < 1.0 < against[2]
        assert row["ours"].mean == pytest.approx(values["ours"].mean())
    assert 50 <= held <= 60  # 57 expected of 60 at 95 %


def test_a_figure_that_should_come_near_to_the_truth_is_its_distance() -> None:
    made = record(np.array([3.0, 5.0]), key="motion-energy/bg", truth=4.0)
    row = cells({"ours": [made]}, "motion-energy/bg")
    assert row["ours"].mean == 1.0


def record(values: np.ndarray, key: str = "psnr/fg", truth: float | None = None) -> dict[str, Any]:
    """What a run's record says of one figure."""
    facts = {"kind": "clip", "better": "higher" if truth is None else "truth"}
    own = {} if truth is None else {key: truth}
    clips = {f"{i:02d}-self": {"values": {key: float(value)}, "truth": own} for i, value in enumerate(values)}
    return {"clips": clips, "sets": {}, "metrics": {key.partition("/")[0]: facts}}
