"""The networks that metrics look through: which files they are, whose, under what licence, and how they are loaded.

`backbones.json` lists them. A network has one or more *variants*: sets of files that give the same kind of features.
The first variant whose files are all there is taken; they are looked for in the folder given (`FOLDER/NAME/FILE` or
`FOLDER/FILE`), else in the cache, where `xdyna models pull NAME` puts what lies on the hub. Nothing is ever fetched on
its own, and where no variant is there the metrics that need it are left out, with a line that says so.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xdyna
from xdyna.errors import UserError, near_matches
from xdyna.models import KnownFile, KnownModel, pulled_folder

MANIFEST = Path(__file__).with_name("backbones.json")
SHIPPED = Path(xdyna.__file__).resolve().parent / "weights"

#: Packages that a network may need, and the extra of this package that brings them.
EXTRAS = {"mediapipe": "pose", "onnxruntime": "onnx"}
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Variant:
    """One set of files that a network can be read from.

    Attributes:
        source: where its authors keep it.
        licence: as they give it.
        files: path on the hub or file name -> the SHA-256 of the content or its beginning, as far as it is known; None
            where it is not.
        load: `module:function` that takes the files' paths, in order.
        repo: on the hub; None if it is not there.
        shipped: whether it comes with this package.
        code: whether the files hold code, which loading them runs.
    """

    source: str
    licence: str
    files: Mapping[str, str | None]
    load: str
    repo: str | None = None
    shipped: bool = False
    code: bool = False


@dataclass(frozen=True)
class Backbone:
    """A network of the manifest.

    Attributes:
        name: in the manifest, and of its folder.
        about: what its features tell.
        class_name: `module:class` of what is loaded, or of the network inside it.
        variants: in the order in which they are tried.
        needs: a package beyond those that are always there; None for none.
    """

    name: str
    about: str
    class_name: str
    variants: tuple[Variant, ...]
    needs: str | None


def known_backbones() -> dict[str, Backbone]:
    """All networks in `backbones.json`."""
    data = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {
        name: Backbone(
            name,
            entry["about"],
            entry["class"],
            tuple(_read_variant(variant) for variant in entry["variants"]),
            entry.get("needs"),
        )
        for name, entry in data.items()
    }


def _read_variant(entry: Mapping[str, Any]) -> Variant:
    return Variant(**{key: value for key, value in entry.items() if key not in ("revision", "into")})


def find_known(name: str) -> Backbone:
    """A network of the manifest.

    Raises:
        UserError: unknown; near names are given.
    """
    backbones = known_backbones()
    if name not in backbones:
        raise UserError(f"unknown backbone {name!r}{near_matches(name, backbones)}")
    return backbones[name]


def find_backbone(name: str, folder: Path | None = None, *, trust_code: bool = False) -> tuple[Variant, list[Path]]:
    """The first variant of a network whose files are all there, and their paths. Their content is not looked at.

    Args:
        name: in the manifest.
        folder: where to look before the cache; None is the cache alone.
        trust_code: take variants whose files hold code, too.

    Raises:
        UserError: an unknown name, a package that is not installed, or no variant is complete: what was looked for,
            and where it comes from.
    """
    backbone = find_known(name)
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}: no such folder; wanted one with networks' files")
    if backbone.needs is not None and find_spec(backbone.needs) is None:
        raise UserError(f"{name} needs {backbone.needs}: pip install 'xdyna[{EXTRAS[backbone.needs]}]'")
    distrusted = ""
    for variant in backbone.variants:
        paths = [_place(name, file, variant, folder) for file in variant.files]
        found = [path for path in paths if path is not None]
        if len(found) < len(paths):
            continue
        if not variant.code or trust_code:
            return variant, found
        distrusted = f"{found[0]} is there, but holds code, which loading would run: allow it if you trust it; else "
    raise UserError(distrusted + _absent(backbone, folder))


def _place(name: str, file: str, variant: Variant, folder: Path | None) -> Path | None:
    if variant.shipped:
        return SHIPPED / file if (SHIPPED / file).is_file() else None
    last = Path(file).name
    places = [folder / name / file, folder / name / last, folder / last] if folder else []
    places.append(pulled_folder(name) / file)
    return next((place for place in places if place.is_file()), None)


def _absent(backbone: Backbone, folder: Path | None) -> str:
    cached = pulled_folder(backbone.name)
    where = f"{folder / backbone.name} or {cached}" if folder else f"{cached} or a folder of networks"
    files = "; or ".join(
        f"{', '.join(Path(file).name for file in variant.files)} (of {variant.source})" for variant in backbone.variants
    )
    pull = f"; or run `xdyna models pull {backbone.name}`" if any(variant.repo for variant in backbone.variants) else ""
    return f"the weights of {backbone.name} are not there: wanted in {where}: {files}{pull}"


def load_backbone(name: str, folder: Path | None = None, *, trust_code: bool = False) -> Any:
    """Read a network, frozen and in evaluation mode.

    Args:
        name: in the manifest.
        folder: where its files lie, see `find_backbone`.
        trust_code: whether files that hold code (TorchScript) may be run.

    Raises:
        UserError: files that are absent, broken, of something else, or not those whose hash is known.
    """
    variant, paths = find_backbone(name, folder, trust_code=trust_code)
    for path, beginning in zip(paths, variant.files.values(), strict=True):
        if beginning is not None:
            _check_hash(path, beginning, variant)
    module, _, function = variant.load.partition(":")
    return getattr(importlib.import_module(module), function)(*paths)


def _check_hash(path: Path, beginning: str, variant: Variant) -> None:
    if not (found := sha256_of(path)).startswith(beginning):
        got = found[: len(beginning)]
        raise UserError(f"{path}: has SHA-256 {got}, wanted {beginning}, that of {variant.source}; get it again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_READ_BYTES):
            total.update(chunk)
    return total.hexdigest()


def on_hub(name: str) -> KnownModel:
    """The variant of a network that lies on the hub, as `xdyna.models.pull` takes it.

    Raises:
        UserError: unknown, or not on the hub: where it is instead.
    """
    backbone = find_known(name)
    variant = next((one for one in backbone.variants if one.repo), None)
    if variant is None or variant.repo is None:
        sources = "; or ".join(one.source for one in backbone.variants)
        raise UserError(f"{name} is not on the hub; its files come from {sources}")
    whole = {path: known if known and len(known) == 64 else None for path, known in variant.files.items()}
    files = tuple(KnownFile(variant.repo, path, path, known, False) for path, known in whole.items())
    return KnownModel(name, backbone.about, files, {variant.repo: variant.licence}, {variant.repo: None})
