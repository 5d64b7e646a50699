"""Generate official files at full size, convert them there and back, and print the peak memory of each command.

    python scripts/measure_conversion.py FOLDER        # needs about 40 GB of disk

The weights are random, the names, shapes and file formats those of the official files. Peak memory is the process's
largest resident set, mapped file pages included; its share that is not file pages is printed too. Each must stay under
1.5 times the largest file that the command reads or writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT = 1.5
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 512,
}  # fmt: skip
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VISION = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "patch_size": 14, "projection_dim": 1024,
}  # fmt: skip


def generate(folder: Path) -> None:
    """Write the official layout with random weights."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
    from transformers import CLIPVisionModelWithProjection as VisionModel

    from xdyna.adapters.image_prompt import SD15_RESAMPLER
    from xdyna.checkpoints import layout
    from xdyna.checkpoints.assemble import sinusoid
    from xdyna.checkpoints.convert import unet_components, wanted_shapes
    from xdyna.checkpoints.key_maps import RESAMPLER_RULES, UNET_RULES, image_sites, to_official
    from xdyna.checkpoints.tensor_files import Entry, write_safetensors
    from xdyna.controlnets.pose import PoseControlNet
    from xdyna.controlnets.s_face import SFaceControlNet

    generator = torch.Generator().manual_seed(0)

    def draw(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        return sinusoid(*shape[1:]) if key.endswith(".pe") else torch.randn(shape, generator=generator) * 0.02

    def save(path: str, shapes: dict[str, tuple[int, ...]]) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {key: draw(key, shape) for key, shape in shapes.items()}}, target)

    def save_stock(path: str, config: dict[str, Any], module: torch.nn.Module, name: str) -> None:
        (folder / path).mkdir(parents=True)
        (folder / path / "config.json").write_text(json.dumps(config))
        entries = [
            Entry(key, shape, torch.float32, lambda key=key, shape=shape: draw(key, shape))
            for key, shape in wanted_shapes(module).items()
        ]
        write_safetensors(folder / path / name, entries)

    official: dict[str, dict[str, tuple[int, ...]]] = {"unet": {}, "resampler": {}}
    for component, part in unet_components({}, SD15_RESAMPLER).items():
        for key, shape in wanted_shapes(part).items():
            name = "resampler" if key.startswith("resampler.") else "unet"
            for source in to_official(component, key, RESAMPLER_RULES if name == "resampler" else UNET_RULES):
                official[name][source.official] = (source.parts * shape[0], *shape[1:])
    save(layout.UNET_FILE, official["unet"])
    with torch.device("meta"):
        pose, face = PoseControlNet(cross_attention_dim=768), SFaceControlNet(cross_attention_dim=768)
        vae = AutoencoderKL.from_config(VAE)
        text, vision = CLIPTextModel(CLIPTextConfig(**TEXT)), VisionModel(CLIPVisionConfig(**VISION))
    save(layout.POSE_FILE, wanted_shapes(pose))
    save(layout.FACE_FILE, wanted_shapes(face))
    (folder / layout.IP_ADAPTER).mkdir(parents=True)
    layers = {
        f"{2 * i + 1}.{leaf}": draw(leaf, official["unet"][f"{site}.{leaf}"])
        for i, site in enumerate(image_sites(official["unet"]))
        for leaf in ("to_k_ip.weight", "to_v_ip.weight")
    }
    resampler = {key: draw(key, shape) for key, shape in official["resampler"].items()}
    torch.save({"image_proj": resampler, "ip_adapter": layers}, folder / layout.IP_ADAPTER_FILE)
    save_stock(layout.IMAGE_ENCODER, VISION, vision, "model.safetensors")
    save_stock(f"{layout.SD15}/text_encoder", TEXT, text, "model.safetensors")
    save_stock(f"{layout.SD15}/vae", VAE, vae, "diffusion_pytorch_model.safetensors")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(
        folder / layout.SD15 / "tokenizer"
    )


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command; (peak resident set, peak of what is not file pages, seconds), bytes."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    own = 0.0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        own = max(own, anonymous_bytes(process.pid))
        time.sleep(0.05)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return usage.ru_maxrss * 1024.0, own, time.monotonic() - start


def anonymous_bytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def report(name: str, peak: float, own: float, seconds: float, *folders: Path) -> bool:
    largest = max((path for folder in folders for path in folder.rglob("*") if path.is_file()), key=_size)
    ratio = peak / _size(largest)
    print(
        f"{name}: peak {peak / 1e9:.2f} GB ({own / 1e9:.2f} GB of it not file pages), largest file {largest.name} "
        f"{_size(largest) / 1e9:.2f} GB, ratio {ratio:.2f} (allowed {LIMIT}), {seconds:.0f} s",
        flush=True,
    )
    return ratio < LIMIT


def _size(path: Path) -> int:
    return path.stat().st_size


def same_tensors(left: Path, right: Path) -> bool:
    """Whether two official UNet files hold the same names and bytes, compared one tensor at a time."""
    from xdyna.checkpoints import TensorFile

    def digests(path: Path) -> dict[str, str]:
        file = TensorFile(path)
        return {key: hashlib.sha256(file.read(key).numpy().tobytes()).hexdigest() for key in file}

    return digests(left) == digests(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generate-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    official, pipeline, back = (args.folder / name for name in ("official", "pipeline", "back"))
    if args.generate_only:
        generate(official)
        return
    if not official.is_dir():
        subprocess.run([sys.executable, __file__, str(args.folder), "--generate-only"], check=True)
    xdyna = str(Path(sys.executable).with_name("xdyna"))
    good = report(
        "to pipeline",
        *measure([xdyna, "convert", str(official), "-o", str(pipeline), "--overwrite"]),
        official,
        pipeline,
    )
    to_official = [xdyna, "convert", str(pipeline), "--to", "official", "-o", str(back), "--overwrite"]
    good &= report("to official", *measure(to_official), pipeline, back)
    from xdyna.checkpoints.layout import UNET_FILE

    same = same_tensors(official / UNET_FILE, back / UNET_FILE)
    print(f"UNet file there and back: {'the same names and bytes' if same else 'DIFFERENT'}")
    raise SystemExit(0 if good and same else 1)


if __name__ == "__main__":
    main()
