"""Every key and shape of the official models at full size, from our own models and key maps, without weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_sets import shared_file

from xdyna.checkpoints import infer_config
from xdyna.checkpoints.convert import unet_components, wanted_shapes
from xdyna.checkpoints.key_maps import (
    FACE_RULES,
    POSE_RULES,
    RESAMPLER_RULES,
    UNET_RULES,
    Rule,
    to_official,
    to_ours,
)
from xdyna.controlnets.pose import PoseControlNet
from xdyna.controlnets.s_face import SFaceControlNet

pytestmark = pytest.mark.parity

Shapes = dict[str, tuple[int, ...]]


def read_facts(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(shared_file(f"facts/{name}.json").read_text())
    return facts


def official_shapes(components: dict[str, Shapes], rules: tuple[Rule, ...]) -> Shapes:
    """Official name -> shape of everything that a key map reaches from our components."""
    shapes: Shapes = {}
    for component, wanted in components.items():
        for key, shape in wanted.items():
            for source in to_official(component, key, rules):
                whole = (source.parts * shape[0], *shape[1:])
                assert shapes.setdefault(source.official, whole) == whole
    return shapes


def recorded_shapes(facts: dict[str, Any]) -> Shapes:
    return {entry["key"]: tuple(entry["shape"]) for entry in facts["keys"]}


@pytest.fixture(scope="module")
def full_size() -> dict[str, Shapes]:
    """Our UNet and adapters, built with the official config and the Resampler's."""
    unet, resampler = read_facts("unet"), read_facts("resampler")
    infer_config.check_settings({"unet": unet["config"], "image_prompt": resampler["config"]}, "facts")
    config = infer_config.unet_config(recorded_shapes(unet), unet["config"])
    assert config == infer_config.unet_config(recorded_shapes(unet))  # the official one is our default
    resampler_config = infer_config.resampler_config(recorded_shapes(resampler), resampler["config"])
    assert resampler_config == infer_config.resampler_config(recorded_shapes(resampler))
    return {name: wanted_shapes(part) for name, part in unet_components(config, resampler_config).items()}


def test_unet(full_size: dict[str, Shapes]) -> None:
    facts = read_facts("unet")
    assert official_shapes(full_size, UNET_RULES) == recorded_shapes(facts)
    assert {name: len(keys) for name, keys in full_size.items()} == {
        # 20 of the 40 positional encodings are one with their neighbours.
        "unet": facts["groups"]["sd15"]["keys"] + facts["groups"]["motion_module"]["keys"] - 20,
        "dynamics_adapter": facts["groups"]["dynamics_adapter"]["keys"],
        "image_prompt": facts["groups"]["ip_adapter"]["keys"] + 55,
    }


def test_resampler(full_size: dict[str, Shapes]) -> None:
    layers = {"image_prompt": full_size["image_prompt"]}
    assert official_shapes(layers, RESAMPLER_RULES) == recorded_shapes(read_facts("resampler"))


@pytest.mark.parametrize(
    ("name", "kind", "rules", "component"),
    [
        ("controlnet_pose", PoseControlNet, POSE_RULES, "pose_controlnet"),
        ("controlnet_face", SFaceControlNet, FACE_RULES, "face_controlnet"),
    ],
)
def test_controlnet(name: str, kind: Any, rules: tuple[Rule, ...], component: str) -> None:
    facts = read_facts(name)
    config = infer_config.controlnet_config(recorded_shapes(facts))
    with torch.device("meta"):
        ours, stated = kind(**config), kind(**{**config, **facts["config"]})
    assert wanted_shapes(ours) == wanted_shapes(stated)
    assert official_shapes({component: wanted_shapes(ours)}, rules) == recorded_shapes(facts)
    assert sum(parameter.numel() for parameter in ours.parameters()) == facts["total_params"]


@pytest.mark.parametrize(("name", "rules"), [("unet", UNET_RULES), ("resampler", RESAMPLER_RULES)])
def test_key_map_reads_the_same_both_ways(name: str, rules: tuple[Rule, ...]) -> None:
    """Each official key has its own place with us, and that place names the key again."""
    taken: dict[tuple[str, str], set[str]] = {}
    for key in recorded_shapes(read_facts(name)):
        found = to_ours(key, rules)
        assert found is not None
        rule, targets = found
        for target in targets:
            back = to_official(target.component, target.key, rules)
            assert (key, target.part, target.parts) in {(s.official, s.part, s.parts) for s in back}
            taken.setdefault((target.component, target.key), set()).add(key)
            assert len(taken[target.component, target.key]) <= (2 if rule.sinusoid else 1)
