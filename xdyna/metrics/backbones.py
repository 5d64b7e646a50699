"""The networks that metrics look through: which files they are, whose, under what licence, and how they are loaded.

`backbones.json` lists them. A network has one or more *variants*: sets of files that give the same kind of features.
The first variant whose files are all there is taken; they are looked for in the folder given (`FOLDER/FILE` or
`FOLDER/NAME/FILE`), else in the cache. Nothing is ever fetched on its own, and where no variant is there the metrics
that need it are left out, with a line that says so.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xdyna
from xdyna.errors import UserError, near_matches
from xdyna.models import pulled_folder

MANIFEST = Path(__file__).with_name("backbones.json")
SHIPPED = Path(xdyna.__file__).resolve().parent / "weights"


@dataclass(frozen=True)
class Variant:
    """One set of files that a network can be read from.

    Attributes:
        source: where its authors keep it.
        licence: as they give it.
        repo: on the hub; None if it is not there.
        shipped: whether it comes with this package.
        files: file name -> SHA-256 of the content, None where nobody here has seen the file.
        load: `module:function` that takes the files' paths, in order.
    """

    source: str
    licence: str
    repo: str | None
    shipped: bool
    files: Mapping[str, str | None]
    load: str


@dataclass(frozen=True)
class Backbone:
    """A network of the manifest.

    Attributes:
        name: in the manifest, and of its folder.
        about: what its features tell.
        variants: in the order in which they are tried.
    """

    name: str
    about: str
    variants: tuple[Variant, ...]


def known_backbones() -> dict[str, Backbone]:
    """All networks in `backbones.json`."""
    data = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {
        name: Backbone(name, entry["about"], tuple(_read_variant(variant) for variant in entry["variants"]))
        for name, entry in data.items()
    }


def _read_variant(entry: Mapping[str, Any]) -> Variant:
    return Variant(**{"shipped": False, "repo": None, **entry})


def find_backbone(name: str, folder: Path | None = None) -> tuple[Variant, list[Path]]:
    """The first variant of a network whose files are all there, and their paths.

    Args:
        name: in the manifest.
        folder: where to look; None is the cache alone.

    Raises:
        UserError: an unknown name, or no variant is complete: what was looked for, and where it comes from.
    """
    backbones = known_backbones()
    if name not in backbones:
        raise UserError(f"unknown backbone {name!r}{near_matches(name, backbones)}")
    for variant in backbones[name].variants:
        paths = [_place(name, file, variant, folder) for file in variant.files]
        found = [path for path in paths if path is not None]
        if len(found) == len(paths):
            return variant, found
    raise UserError(_absent(backbones[name], folder))


def _place(name: str, file: str, variant: Variant, folder: Path | None) -> Path | None:
    if variant.shipped:
        places = [SHIPPED / file]
    else:
        places = [folder / file, folder / name / file] if folder else []
        places.append(pulled_folder(name) / file)
    return next((place for place in places if place.is_file()), None)


def _absent(backbone: Backbone, folder: Path | None) -> str:
    where = f"in {folder} or {pulled_folder(backbone.name)}" if folder else f"in {pulled_folder(backbone.name)}"
    wanted = "; or ".join(f"{', '.join(variant.files)} (of {variant.source})" for variant in backbone.variants)
    return f"the weights of {backbone.name} are not there: wanted, {where}: {wanted}"


def load_backbone(name: str, folder: Path | None = None) -> Any:
    """Read a network, frozen and in evaluation mode.

    Args:
        name: in the manifest.
        folder: where its files lie, see `find_backbone`.

    Raises:
        UserError: files that are absent, broken or of something else.
    """
    variant, paths = find_backbone(name, folder)
    module, _, function = variant.load.partition(":")
    return getattr(importlib.import_module(module), function)(*paths)
