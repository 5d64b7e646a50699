"""Settings of every command: frozen pydantic models, filled from presets (YAML beside this file) and from options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from xdyna.errors import UserError, near_matches

PRESETS = Path(__file__).resolve().parent
_YAML_SUFFIXES = (".yaml", ".yml", ".json")

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of all settings: values cannot change after construction, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Layer:
    """One source of values: the text that names it in messages, and the nested mapping it gives."""

    def __init__(self, origin: str, values: Mapping[str, Any]) -> None:
        self.origin = origin
        self.values = values


def load_config(
    model_class: type[ConfigT],
    name_or_path: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    below: Iterable[tuple[str, Mapping[str, Any]]] = (),
    values: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Build a config. Weakest first: the class's defaults, a preset or file, `below`, ``KEY=VALUE`` texts, `values`.

    Args:
        model_class: a subclass of `Config`.
        name_or_path: a preset's name (``infer/auto``: the file ``configs/infer/auto.yaml``), a path to a YAML or JSON
            file, or None for the defaults alone.
        overrides: ``KEY=VALUE`` texts; a dotted key reaches into a nested config, the value is read as YAML.
        below: further mappings, each with the text that names it in messages, such as a job of a manifest.
        values: what options gave, by config key; a None means 'not given' and is left out. Messages name the key
            ``num_steps`` as ``--num-steps``.
    Raises:
        UserError: no such preset or file, text that is not YAML, an unknown key (near matches are named), or a value of
            the wrong kind.
    """
    layers = []
    if name_or_path is not None:
        path = find_preset(name_or_path)
        layers.append(_Layer(str(path), read_mapping(path)))
    layers += [_Layer(origin, mapping) for origin, mapping in below]
    layers += [_Layer(f"--set {text}", parse_override(text)) for text in overrides]
    given = {key: value for key, value in (values or {}).items() if value is not None}
    layers += [_Layer(f"--{key.replace('_', '-')}", {key: value}) for key, value in given.items()]
    return build_config(model_class, layers)


def build_config(model_class: type[ConfigT], layers: Iterable[_Layer]) -> ConfigT:
    """Merge layers, later ones winning, and validate the result."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key in _unknown_keys(model_class, layer.values):
            known = _keys_beside(model_class, key)
            raise UserError(f"{layer.origin}: unknown key {key!r}{near_matches(key.rsplit('.', 1)[-1], known)}")
        _merge(merged, layer.values)
        origins.update(dict.fromkeys(_dotted_keys(layer.values), layer.origin))
    try:
        return model_class.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, origins, model_class)) from None


def find_preset(name_or_path: str | Path) -> Path:
    """The file of a preset's name or of a path.

    Raises:
        UserError: neither a file nor a preset; near presets are named.
    """
    path = Path(name_or_path).expanduser()
    preset = PRESETS / f"{name_or_path}.yaml"
    if path.suffix.lower() not in _YAML_SUFFIXES and preset.is_file():
        return preset
    if path.is_file():
        return path
    if path.suffix.lower() in _YAML_SUFFIXES:
        raise UserError(f"{path}: no such config file")
    raise UserError(f"{name_or_path}: no such preset or config file{near_matches(str(name_or_path), preset_names())}")


def preset_names() -> list[str]:
    """Names that `find_preset` knows, such as ``infer/auto``."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds one mapping; an empty file is an empty mapping."""
    data = read_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{path}: holds a {type(data).__name__}, wanted a mapping of KEY: VALUE lines")
    return data


def read_yaml(path: Path) -> Any:
    """Read a YAML (or JSON) file.

    Raises:
        UserError: the file cannot be read, is not text, or is not YAML.
    """
    try:
        if path.suffix.lower() == ".json":  # YAML takes no tabs, and reads pairs of \u escapes otherwise
            return json.loads(path.read_text(encoding="utf-8"))
        return yaml.load(path.read_text(encoding="utf-8"), Loader=YamlLoader)  # noqa: S506 - derived from SafeLoader
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file, wanted YAML or JSON") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=1`` becomes ``{"a": {"b": 1}}``."""
    key, equals, value_text = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {text}: wanted KEY=VALUE, for example steps=10")
    try:
        value = yaml.load(value_text, Loader=YamlLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not valid YAML: {error}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


class YamlLoader(yaml.SafeLoader):
    """SafeLoader that also reads ``1e-4`` as a number; plain PyYAML takes it for text because it has no dot."""


YamlLoader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def save_config(config: Config, path: Path) -> None:
    """Write every resolved value of a config as YAML."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _nested_model(model_class: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The config class of a field that holds one (or ``X | None``)."""
    annotation = model_class.model_fields[key].annotation
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _unknown_keys(model_class: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if key not in model_class.model_fields:
            yield prefix + key
        elif isinstance(value, Mapping) and (nested := _nested_model(model_class, key)):
            yield from _unknown_keys(nested, value, f"{prefix}{key}.")


def _keys_beside(model_class: type[BaseModel], dotted: str) -> list[str]:
    """Keys known at the level of a dotted key."""
    for part in dotted.split(".")[:-1]:
        model_class = _nested_model(model_class, part) or model_class
    return list(model_class.model_fields)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lay `values` over `into`; mappings are merged, everything else is replaced."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            below = into.get(key)
            into[key] = dict(below) if isinstance(below, Mapping) else {}
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(error: ValidationError, origins: Mapping[str, str], model_class: type[BaseModel]) -> str:
    """The first thing wrong, in one line: where the value came from, the key, what was got and what was wanted."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    nearest = next((origins[key] for key in _prefixes(where) if key in origins), model_class.__name__)
    wanted = wanted_text(error)
    if first["type"] == "missing":
        return f"{nearest}: key {where!r} is missing"
    if not where:  # about several keys together, which the text names
        return f"{nearest}: {wanted}"
    name = "" if nearest.startswith("--") else f"{where}: "
    return f"{nearest}: {name}got {first['input']!r}, {wanted}"


def wanted_text(error: ValidationError) -> str:
    """What the first thing wrong should have been, in our words."""
    return error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input should be", "wanted")


def _prefixes(dotted: str) -> Iterator[str]:
    """``a.b.c``, ``a.b``, ``a``."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        yield ".".join(parts[:count])
