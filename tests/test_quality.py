"""The shipped model is as good as it was when its weights were committed, up to the noise that was measured then."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GATE = json.loads((ROOT / "tests" / "quality.json").read_text(encoding="utf-8"))
sys.path.insert(0, str(ROOT / "scripts"))

import measure_quality  # noqa: E402 (a script, found beside the tests)

#: Machines round differently: figures may be off by this share of themselves for that alone.
ROUNDING = 1e-3


def worse(found: dict[str, float]) -> list[str]:
    """Figures that fell by more than their noise, in words."""
    complaints = []
    for name, kept in GATE["figures"].items():
        fall = (kept["mean"] - found[name]) * (1 if kept["higher_is_better"] else -1)
        allowed = 3 * kept["spread"] + ROUNDING * abs(kept["mean"])
        if fall > allowed:
            complaints.append(f"{name}: {found[name]:.4g}, was {kept['mean']:.4g}, allowed to fall by {allowed:.2g}")
    return complaints


@pytest.mark.recipe
def test_the_shipped_model_is_as_good_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_quality.measure(seed=0)
    assert set(found) == set(GATE["figures"])
    assert worse(found) == []

    animate = measure_quality.Animator.animate  # a model that is a little worse does not pass

    def blurred(self: object, case: object) -> object:
        made = torch.from_numpy(animate(self, case)).permute(0, 3, 1, 2).float()
        return torch.nn.functional.avg_pool2d(made, 3, 1, 1).round().byte().permute(0, 2, 3, 1).numpy()

    monkeypatch.setattr(measure_quality.Animator, "animate", blurred)
    assert worse(measure_quality.measure(seed=0)) != []
