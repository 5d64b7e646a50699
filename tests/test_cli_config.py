"""Settings: what beats what, how a mistake is named, and that every preset is sound."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from xdyna.configs import Config, load_config, parse_override, preset_names, save_config
from xdyna.configs.animate import AnimateConfig
from xdyna.errors import UserError


class Optimiser(Config):
    lr: float = 1e-3
    name: str = "adamw"


class Recipe(Config):
    steps: int = 3
    sizes: tuple[int, ...] = (1, 2)
    optimiser: Optimiser = Optimiser()
    second: Optimiser | None = None


def message(call: object, *args: object, **kwargs: object) -> str:
    assert callable(call)
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 5\noptimiser:\n  lr: 0.5\n")
    assert load_config(Recipe) == Recipe()
    assert load_config(Recipe, file).steps == 5
    assert load_config(Recipe, file, below=[("job", {"steps": 6})]).steps == 6
    assert load_config(Recipe, file, ["steps=7"], below=[("job", {"steps": 6})]).steps == 7
    assert load_config(Recipe, file, ["steps=7"], values={"steps": 8}).steps == 8
    assert load_config(Recipe, file, ["steps=7"], values={"steps": None}).steps == 7


def test_nested_values_are_merged_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optimiser:\n  lr: 0.5\n")
    config = load_config(Recipe, file, ["optimiser.name=sgd", "second.lr=1e-4", "sizes=[3, 4]"])
    assert config.optimiser == Optimiser(lr=0.5, name="sgd")
    assert config.second == Optimiser(lr=1e-4)
    assert config.sizes == (3, 4)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AnimateConfig().steps = 3  # type: ignore[misc]


def test_override_values_are_yaml() -> None:
    assert parse_override("a.b = 1e-4") == {"a": {"b": 1e-4}}
    assert parse_override("a=") == {"a": None}
    assert parse_override("a=x=y") == {"a": "x=y"}
    assert parse_override("a=[1, two]") == {"a": [1, "two"]}


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".a=1"])
def test_override_without_key_and_value(text: str) -> None:
    assert "wanted KEY=VALUE" in message(parse_override, text)


def test_unknown_keys_name_their_source_and_near_matches(tmp_path: Path) -> None:
    assert message(load_config, Recipe, None, ["stepz=3"]) == "--set stepz=3: unknown key 'stepz'; did you mean steps?"
    assert "did you mean lr?" in message(load_config, Recipe, None, ["optimiser.lrr=3"])
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer: 3\n")
    assert message(load_config, Recipe, file) == f"{file}: unknown key 'optimizer'; did you mean optimiser?"
    assert "known: optimiser, second, sizes, steps" in message(load_config, Recipe, None, ["zzz=3"])


def test_wrong_values_say_got_and_wanted(tmp_path: Path) -> None:
    text = message(load_config, Recipe, None, ["steps=few"])
    assert text == "--set steps=few: got 'few', wanted a valid integer, unable to parse string as an integer"
    file = tmp_path / "mine.yaml"
    file.write_text("optimiser: {lr: fast}\n")
    assert message(load_config, Recipe, file).startswith(f"{file}: optimiser.lr: got 'fast', wanted a valid number")
    assert message(load_config, AnimateConfig, None, values={"pose_scale": -1}).startswith(
        "--pose-scale: got -1, wanted"
    )


@pytest.mark.parametrize(
    ("content", "wanted"),
    [("- 1\n", "wanted a mapping"), ("a: [1\n", "not valid YAML"), (b"\xff\xfe\x00", "not a text file")],
)
def test_files_that_are_no_config(tmp_path: Path, content: str | bytes, wanted: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = message(load_config, Recipe, file)
    assert text.startswith(str(file))
    assert wanted in text


def test_json_is_read_as_json(tmp_path: Path) -> None:
    """YAML takes no tabs, and makes two broken letters of a pair of escapes."""
    file = tmp_path / "mine.json"
    file.write_text('{\n\t"prompt": "\\ud83d\\ude00"\n}')
    assert load_config(AnimateConfig, file).prompt == "\N{GRINNING FACE}"
    file.write_text("{prompt: a}")
    assert message(load_config, AnimateConfig, file).startswith(f"{file}: not valid JSON")


def test_missing_files_and_presets_are_told_apart(tmp_path: Path) -> None:
    assert "no such config file" in message(load_config, Recipe, tmp_path / "none.yaml")
    assert "did you mean infer/tiny" in message(load_config, AnimateConfig, "infer/tinny")


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("infer/")])
def test_presets_are_sound(name: str) -> None:
    config = load_config(AnimateConfig, name)
    if config.model != "auto":
        decided = ("size", "steps", "guidance", "window", "overlap")
        assert all(getattr(config, key) is not None for key in decided), "a model's preset decides all of these"


def test_saved_config_loads_as_the_same(tmp_path: Path) -> None:
    config = load_config(AnimateConfig, "infer/tiny", ["start=auto", "save_maps=maps", "lora=[a.safetensors:0.5]"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(AnimateConfig, tmp_path / "saved.yaml") == config


def test_animate_sizes_dtypes_and_loras() -> None:
    config = load_config(AnimateConfig, None, ["size=96x128", "dtype=bf16", "lora=a.safetensors"])
    assert (config.size, config.dtype, config.lora) == ((96, 128), "bfloat16", ("a.safetensors",))
    assert load_config(AnimateConfig, None, ["size=[96, 128]"]).size == (96, 128)


@pytest.mark.parametrize("text", ["96", "96x", "ax128", "96x128x3", "0x64", "9000x64"])
def test_animate_refuses_sizes(text: str) -> None:
    assert "wanted" in message(load_config, AnimateConfig, None, values={"size": text})


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["window=4", "overlap=4"], "wanted an overlap (4) smaller than the window (4)"),
        (["pose_start=0.5", "pose_end=0.5"], "wanted pose_start (0.5) before pose_end (0.5)"),
        (["detector=tracks"], "--tracks FILE"),
        (["guidance=0.5"], "greater than or equal to 1"),
        (["align=limbs"], "'bones'"),
        (["seed=-1"], "greater than or equal to 0"),
        (["start=-2"], "start"),
        (["start=soon"], "got 'soon', wanted a number of seconds, or auto"),
        (["stride=0"], "stride"),
        (["frames=0"], "frames"),
    ],
)
def test_animate_refuses(values: list[str], wanted: str) -> None:
    assert wanted in message(load_config, AnimateConfig, None, values)


def test_model_defaults_fill_only_what_is_open() -> None:
    defaults = AnimateConfig(steps=9, guidance=2.0, size=(64, 96), seed=7)
    config = AnimateConfig(steps=3).with_model_defaults(defaults)
    assert (config.steps, config.guidance, config.size, config.seed) == (3, 2.0, (64, 96), 42)


def test_model_defaults_that_do_not_fit_what_was_given() -> None:
    with pytest.raises(UserError, match=r"wanted an overlap \(4\) smaller than the window \(4\); .* overlap 4"):
        AnimateConfig(window=4).with_model_defaults(AnimateConfig(window=16, overlap=4))
