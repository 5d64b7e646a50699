"""Text encoder, tokenizer, image encoder: stock parts that keep their names, checked and copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from xdyna.checkpoints.assemble import Report, some
from xdyna.checkpoints.key_maps import DROPPED_BUFFERS
from xdyna.checkpoints.tensor_files import Entry, TensorFile, check_finite, write_safetensors
from xdyna.errors import UserError

_WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
#: transformers 5 leaves this prefix out of the text encoder's names; files on the hub have it.
_TEXT_PREFIX = "text_model."


def weights_file(folder: Path) -> Path | None:
    """The weights in a diffusers or transformers folder; safetensors first."""
    return next((folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()), None)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a diffusers or transformers folder.

    Raises:
        UserError: it is not readable, or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds a {type(config).__name__}, wanted a JSON object")
    return config


def copy_text_and_image_parts(
    sd15: Path | None, image_encoder: Path | None, out: Path, dtype: torch.dtype | None, report: Report
) -> dict[str, Any]:
    """Copy what is there of tokenizer, text encoder and image encoder; returns the classes.

    Raises:
        UserError: a part is there but incomplete or of another model.
    """
    classes: dict[str, Any] = {}
    if sd15 and (sd15 / "text_encoder").is_dir():
        _copy_model(sd15 / "text_encoder", out, CLIPTextModel, CLIPTextConfig, dtype, report)
        classes["text_encoder"] = CLIPTextModel
    if sd15 and (sd15 / "tokenizer").is_dir():
        shutil.copytree(sd15 / "tokenizer", out / "tokenizer", ignore=shutil.ignore_patterns(".*"))
        try:
            CLIPTokenizer.from_pretrained(out / "tokenizer")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{sd15 / 'tokenizer'}: not a CLIP tokenizer: {error}") from None
        classes["tokenizer"] = CLIPTokenizer
    if image_encoder:
        _copy_model(
            image_encoder, out, CLIPVisionModelWithProjection, CLIPVisionConfig, dtype, report, name="image_encoder"
        )
        classes["image_encoder"] = CLIPVisionModelWithProjection
        # The official code uses the class's defaults, whatever a preprocessor_config.json says.
        config = CLIPVisionConfig.from_pretrained(image_encoder)
        side = int(config.image_size)
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        processor.save_pretrained(out / "feature_extractor")
        classes["feature_extractor"] = CLIPImageProcessorPil
    return classes


def _copy_model(
    source: Path,
    out: Path,
    kind: Any,
    config_kind: Any,
    dtype: torch.dtype | None,
    report: Report,
    name: str = "text_encoder",
) -> None:
    path = weights_file(source)
    if path is None or not (source / "config.json").is_file():
        raise UserError(
            f"{source}: wanted config.json and model.safetensors (or pytorch_model.bin) of a {kind.__name__}"
        )
    try:
        config = config_kind(**read_config(source))
        with torch.device("meta"):
            model = kind(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{source / 'config.json'}: no {kind.__name__} can be built of it: {error}") from None
    file = TensorFile(path, clean=False)
    kept = [key for key in file if not key.endswith(DROPPED_BUFFERS)]
    _check_keys(file, kept, {key: tuple(value.shape) for key, value in model.state_dict().items()}, kind.__name__)
    (out / name).mkdir()
    shutil.copyfile(source / "config.json", out / name / "config.json")
    write_safetensors(out / name / "model.safetensors", [_entry(file, key, dtype) for key in kept])
    report.count(name, str(path), len(kept))


def _check_keys(file: TensorFile, keys: Iterable[str], wanted: dict[str, tuple[int, ...]], kind: str) -> None:
    """Every tensor of the model is there once, with its shape, and nothing else."""
    got = {key.removeprefix(_TEXT_PREFIX): file.shape(key) for key in keys}
    wanted = {key.removeprefix(_TEXT_PREFIX): shape for key, shape in wanted.items()}
    for word, names in (("lacks", wanted.keys() - got.keys()), ("has unknown", got.keys() - wanted.keys())):
        if names:
            raise UserError(f"{file.path}: {word} {some(sorted(names))}; wanted the {len(wanted)} tensors of a {kind}")
    for key, shape in wanted.items():
        if got[key] != shape:
            raise UserError(f"{file.path}: {key} has shape {list(got[key])}, its config.json says {list(shape)}")


def _entry(file: TensorFile, key: str, dtype: torch.dtype | None) -> Entry:
    stored = file.dtype(key)
    final = dtype if dtype and stored.is_floating_point else stored

    def make() -> torch.Tensor:
        tensor = file.read(key).to(final)
        check_finite(tensor, f"{file.path}: {key}, as {str(final).removeprefix('torch.')},")
        return tensor

    return Entry(key, file.shape(key), final, make)
