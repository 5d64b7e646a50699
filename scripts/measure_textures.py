"""Figures of the texture network on clips that its training never draws: what it tells, and how far sets lie apart.

python scripts/measure_textures.py [WEIGHTS] [--clips 360] [--sets 96]

Prints the tables of docs/metrics.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from xdyna.configs.metrics_recipes import TexturesConfig
from xdyna.data.source import draw_batch
from xdyna.data.synthetic.clips import World, clip_spec, render
from xdyna.metrics.frechet import Moments, frechet_distance
from xdyna.metrics.textures import ORDERS, SCENES, WEIGHTS, WINDOW, TextureNet, load_textures, texture_features
from xdyna.train.recipes.texture_clips import TextureSource, reordered
from xdyna.train.recipes.textures import Report, TextureSystem

FIRST_SET = 11_000_000  # clips of the sets: beyond those that training validates on


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path, nargs="?", default=WEIGHTS)
    parser.add_argument("--clips", type=int, default=360, help="held-out clips that are told apart")
    parser.add_argument("--sets", type=int, default=96, help="clips in each set of a Frechet distance")
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = load_textures(given.weights)
    cfg = TexturesConfig(validate_clips=given.clips, seed=1)
    source = TextureSource(World(**cfg.world.model_dump()), cfg.loops_s)
    system = TextureSystem(net, source, cfg)
    print(f"{given.clips} held-out clips:")
    for name, value in Report(system, source, cfg).figures().items():
        print(f"  {name}: {value:.3f}")
    _print_confusion(*_confusion(system, source, cfg))
    _print_distances(net, given.sets)


@torch.no_grad()
def _confusion(system: TextureSystem, source: TextureSource, cfg: TexturesConfig) -> tuple[np.ndarray, np.ndarray]:
    """Counts [6, 6] of orders and [9, 9] of scenes: true by told."""
    orders = np.zeros((len(ORDERS),) * 2, int)
    scenes = np.zeros((len(SCENES),) * 2, int)
    for start in range(0, cfg.validate_clips, cfg.batch):
        indices = range(cfg.held_out + start, cfg.held_out + min(start + cfg.batch, cfg.validate_clips))
        batch = draw_batch(source, indices)
        done = [source.treatment(name) for name in batch.names]
        clips, _ = system.pictures(batch, done)
        scene, order, _ = system.net.readings(system.net(clips))
        for one, told_scene, told_order in zip(done, scene.argmax(1), order.argmax(1), strict=True):
            if one.order_known:
                orders[one.order, int(told_order)] += 1
            if one.scene_known:
                scenes[one.scene, int(told_scene)] += 1
    return orders, scenes


def _print_confusion(orders: np.ndarray, scenes: np.ndarray) -> None:
    print("\n| order | told rightly | told as |\n|---|---|---|")
    for names, table in ((ORDERS, orders), (SCENES, scenes)):
        for place, name in enumerate(names):
            row = table[place]
            others = [(row[k], names[k]) for k in np.argsort(-row) if k != place and row[k]]
            said = ", ".join(f"{other} {count}" for count, other in others)
            print(f"| {name} | {row[place]} of {row.sum()} | {said} |")


def _print_distances(net: TextureNet, count: int) -> None:
    """Frechet distances of scene clips to other scene clips, and to those that were spoiled."""
    clips = [_scene(FIRST_SET + index) for index in range(2 * count)]
    truth = _moments(net, clips[:count])
    rng = np.random.default_rng(0)
    print(f"\n| {count} scene clips against {count} others, which are | distance |\n|---|---|")
    print(f"| as they are | {frechet_distance(truth, _moments(net, clips[count:])):.3f} |")
    for order in ORDERS[1:]:
        changed = [clip[reordered(order, rng)] for clip in clips[count:]]
        print(f"| {order} | {frechet_distance(truth, _moments(net, changed)):.3f} |")
    for strength in (8, 24):
        noisy = [_noisy(clip, strength, rng) for clip in clips[count:]]
        print(f"| with noise of {strength} grey levels | {frechet_distance(truth, _moments(net, noisy)):.3f} |")
    for pace in (0.5, 2.0):
        paced = [_scene(FIRST_SET + count + index, pace) for index in range(count)]
        print(f"| at {pace:g} times the pace | {frechet_distance(truth, _moments(net, paced)):.3f} |")


def _scene(index: int, pace: float = 1.0) -> np.ndarray:
    world = World(loop_s=float(index % 2), scenes=SCENES[1:], scene_only=1.0)
    spec = replace(clip_spec(world, index), person=False)
    return render(spec, 1.0 + np.arange(WINDOW) * pace / world.fps, world.size_wh, world.fps).frames


def _moments(net: TextureNet, clips: list[np.ndarray]) -> Moments:
    moments = Moments()
    for clip in clips:
        moments.add(texture_features(clip, net))
    return moments


def _noisy(clip: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.round(clip + rng.normal(0, strength, clip.shape)), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
