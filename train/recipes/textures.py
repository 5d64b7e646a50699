"""Recipe `textures`: a small network whose features tell how drawn scenes move, for measuring generated clips.

It learns to say what kind of scene a clip shows, whether its frames are in order, how fast it goes, and how much it is
noised, blurred, flickers and shakes: looks alone answer none but the first.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xdyna.configs.metrics_recipes import TexturesConfig
from xdyna.data.source import Batch, draw_batch
from xdyna.data.synthetic.clips import World
from xdyna.metrics.textures import AMOUNTS, ORDERS, SCENES, TextureNet, TexturesShape, as_clips, load_textures, resized
from xdyna.train.noise import sample_generator
from xdyna.train.recipes.texture_clips import TextureSource, Treatment, spoiled
from xdyna.train.run import Run
from xdyna.train.sample_files import note_sample, sample_path, write_sheet

RECIPE = "textures"
WEIGHTS_NAME = "textures-synth.safetensors"
#: What the squared error of the amounts weighs beside the two cross-entropies.
AMOUNT_WEIGHT = 4.0


def train(cfg: TexturesConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train the network; return the folder that holds `textures-synth.safetensors`."""
    torch.manual_seed(cfg.seed)
    source = TextureSource(World(**cfg.world.model_dump()), cfg.loops_s)
    shape = TexturesShape(cfg.size_wh, cfg.widths, cfg.features)
    net = (load_textures(cfg.init) if cfg.init else TextureNet(shape)).requires_grad_(True)
    system = TextureSystem(net, source, cfg)
    report = Report(system, source, cfg)
    run = Run(cfg, RECIPE, system, source, resume=resume, quiet=quiet, sampler=report)

    for _ in run.steps():
        for batch in run.batches():
            run.backward(run.system(batch))
        run.update()

    def write(folder: Path) -> None:
        figures = {name: round(value, 3) for name, value in report.figures().items()}
        net.save(folder / WEIGHTS_NAME, steps=cfg.steps, **figures)

    return run.finish(write)


class TextureSystem(nn.Module):
    """Loss of a batch of clips: they are spoiled, and the network is asked what was done to them."""

    def __init__(self, net: TextureNet, source: TextureSource, cfg: TexturesConfig) -> None:
        super().__init__()
        self.net, self.source, self.cfg = net, source, cfg
        self.saved = {"net": net}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        done = [self.source.treatment(name) for name in batch.names]
        clips, amounts = self.pictures(batch, done)
        scene, order, found = self.net.readings(self.net(clips))
        device = clips.device

        def flags(name: str) -> Tensor:
            return torch.tensor([bool(getattr(one, name)) for one in done], device=device)

        scene_loss, scene_right = _classes(scene, [one.scene for one in done], flags("scene_known"))
        order_loss, order_right = _classes(order, [one.order for one in done], flags("order_known"))
        known = torch.ones_like(amounts, dtype=torch.bool)
        known[:, 0] = flags("scene_moves") & (amounts[:, 0] == amounts[:, 0])
        error = F.mse_loss(found[known], amounts[known])
        loss = scene_loss + order_loss + AMOUNT_WEIGHT * error
        return {"loss": loss, "scene": scene_right, "order": order_right, "amounts": error}

    def pictures(self, batch: Batch, done: list[Treatment]) -> tuple[Tensor, Tensor]:
        """What the network sees, float [B, 3, F, h, w], and the true amounts [B, 5].

        The pace of clips whose moving part stands still is NaN.
        """
        random = sample_generator(self.cfg.seed, int(batch.indices[0]))
        size_wh = self.net.shape.size_wh
        clips, spoils = spoiled(as_clips(torch.as_tensor(batch.frames), size_wh), random)
        for index, one in enumerate(done):
            if one.shown != "all":
                covers = torch.as_tensor(batch.masks[index])[:, None].float() / 255
                person = resized(covers, size_wh)[:, 0] >= 0.5
                hidden = person if one.shown == "bg" else ~person
                clips[index] = clips[index].masked_fill(hidden[None], 0)
        paces = [float("nan") if ORDERS[one.order] == "frozen" else float(np.log2(one.pace)) for one in done]
        device = next(self.net.parameters()).device
        return clips.to(device), torch.cat([torch.tensor(paces)[:, None], spoils], 1).to(device)


class Report:
    """How well the network tells held-out clips apart, and a sheet of some of them."""

    def __init__(self, system: TextureSystem, source: TextureSource, cfg: TexturesConfig) -> None:
        self.system, self.source, self.cfg = system, source, cfg
        self.indices = range(cfg.held_out, cfg.held_out + cfg.validate_clips)

    def __call__(self, folder: Path, step: int) -> None:
        figures = self.figures()
        line = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        with (folder / "report.txt").open("a", encoding="utf-8") as report:
            report.write(f"step {step}: {line}\n")
        write_sheet(sample_path(folder, step, ".png"), self._sheet())
        charts = {
            "Told rightly (share)": {name: value for name, value in figures.items() if name not in AMOUNTS},
            "Correlation of amounts": {name: value for name, value in figures.items() if name in AMOUNTS},
        }
        note_sample(folder, step, "Held-out clips: what was done, and what was read.", charts)

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Shares of scenes and orders told rightly, correlations of the amounts; empty without held-out clips."""
        rows: list[tuple[Treatment, Tensor, Tensor, Tensor, Tensor]] = []
        for start in range(0, len(self.indices), self.cfg.batch):
            indices = self.indices[start : start + self.cfg.batch]
            batch = draw_batch(self.source, indices)
            done = [self.source.treatment(name) for name in batch.names]
            clips, amounts = self.system.pictures(batch, done)
            scene, order, found = self.system.net.readings(self.system.net(clips))
            rows += zip(done, scene.argmax(1), order.argmax(1), found, amounts, strict=True)
        if not rows:
            return {}
        figures = {
            "scene": _share([int(scene) == done.scene for done, scene, *_ in rows if done.scene_known]),
            "order": _share([int(order) == done.order for done, _, order, *_ in rows if done.order_known]),
        }
        for place, name in enumerate(AMOUNTS):
            pairs = [(float(found[place]), float(true[place])) for done, _, _, found, true in rows
                     if place or done.scene_moves]  # fmt: skip
            figures[name] = _correlation(np.asarray([pair for pair in pairs if pair[1] == pair[1]]))
        return figures

    def _sheet(self) -> np.ndarray:
        """Eight held-out clips, every third frame, and in words what was done to them and what was read."""
        batch = draw_batch(self.source, self.indices[:8] or range(self.cfg.held_out, self.cfg.held_out + 8))
        done = [self.source.treatment(name) for name in batch.names]
        clips, _ = self.system.pictures(batch, done)
        scene, order, _ = self.system.net.readings(self.system.net(clips))
        lines = []
        for index, one in enumerate(done):
            shown = ((clips[index, :, ::3].cpu().numpy() + 1) * 127.5).astype(np.uint8)  # [3, f, h, w]
            strip = np.concatenate(list(shown.transpose(1, 2, 3, 0)), 1)
            words = np.full((14, strip.shape[1], 3), 255, np.uint8)
            true = f"{SCENES[one.scene]} {ORDERS[one.order]} x{one.pace:.1f}"
            text = f"{true} | {SCENES[int(scene[index].argmax())]} {ORDERS[int(order[index].argmax())]}"
            cv2.putText(words, text, (2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (0, 0, 0), 1, cv2.LINE_AA)
            lines += [words, strip]
        return np.concatenate(lines, 0)


def _classes(logits: Tensor, wanted: list[int], known: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and share told rightly, over the clips where the class can be known."""
    truth = torch.tensor(wanted, device=logits.device)
    weight = known.float() / known.sum().clamp(min=1)
    loss = (F.cross_entropy(logits, truth, reduction="none") * weight).sum()
    return loss, ((logits.argmax(1) == truth) * weight).sum()


def _share(right: list[bool]) -> float:
    return float(np.mean(right)) if right else float("nan")


def _correlation(pairs: np.ndarray) -> float:
    if len(pairs) < 3 or pairs.std(0).min() == 0:
        return float("nan")
    return float(np.corrcoef(pairs.T)[0, 1])
