"""The package as it is installed: its folders, archives, weight of import, and the direction of its imports."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR: dict[str, str] = SETTINGS["tool"]["setuptools"]["package-dir"]
HEAVY = ("torch", "diffusers", "transformers")

# Units of the package in the order in which imports may point: to the same layer or to one before it. What is not
# named is a leaf module and belongs to the second layer.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files"),
    (),
    ("unet",),
    ("adapters", "controlnets"),
    ("checkpoints", "denoise", "pipeline"),
    ("infer", "train"),
    ("cli",),
)  # fmt: skip


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout; it must succeed."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XDYNA_DEBUG")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def source_files(suffix: str) -> Iterator[tuple[str, Path]]:
    """(path inside the installed package, file) of every package file of a suffix."""
    for package, folder in PACKAGE_DIR.items():
        prefix = package.replace(".", "/")
        for file in sorted((ROOT / folder).rglob(f"*{suffix}")):
            if "__pycache__" not in file.parts:
                yield f"{prefix}/{file.relative_to(ROOT / folder).as_posix()}", file


def test_package_list_equals_the_folders() -> None:
    folders = {
        f"{package}.{'.'.join(file.parent.relative_to(ROOT / folder).parts)}".rstrip(".")
        for package, folder in PACKAGE_DIR.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(folders) == sorted(SETTINGS["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    bare = {str(file.parent) for _, file in source_files(".py") if not (file.parent / "__init__.py").is_file()}
    assert not bare


# --- imports -----------------------------------------------------------------------------------------------------


def imported_modules(file: Path, module: str) -> Iterator[str]:
    """Absolute names of the `xdyna` modules that a file imports anywhere, inside functions too."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "xdyna")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            if base == "xdyna":
                yield from (f"xdyna.{alias.name}" for alias in node.names)
            elif base.startswith("xdyna."):
                yield base


def unit_of(module: str) -> str:
    """The part right under `xdyna`; names such as `XDynaPipeline` are looked up in the lazy table."""
    import xdyna

    name = module.split(".")[1] if "." in module else ""
    return xdyna._LAZY.get(name, f"xdyna.{name}").split(".")[1]


def import_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name, file in source_files(".py"):
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module != "xdyna":
            targets = {unit_of(target) for target in imported_modules(file, module)} - {"", "__version__"}
            graph.setdefault(unit_of(module), set()).update(targets - {unit_of(module)})
    return graph


def test_imports_point_one_way() -> None:
    rank = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
    graph = import_graph()
    assert set(rank) <= set(graph)
    backwards = [
        f"{unit} imports {target}"
        for unit, targets in graph.items()
        for target in targets
        if rank.get(target, 1) > rank.get(unit, 1)
    ]
    assert not backwards


def test_no_two_parts_import_each_other() -> None:
    graph = import_graph()
    reach = {unit: set(targets) for unit, targets in graph.items()}
    for _ in graph:
        reach = {unit: targets.union(*(reach.get(t, set()) for t in targets)) for unit, targets in reach.items()}
    assert not [unit for unit, targets in reach.items() if unit in targets]


def test_import_graph_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "def f():\n    from xdyna.cli import main\n    from ..pipeline import x\n    from xdyna import XDynaUNet\n"
    )
    assert sorted(imported_modules(file, "xdyna.infer.module")) == ["xdyna.XDynaUNet", "xdyna.cli", "xdyna.pipeline"]
    assert unit_of("xdyna.XDynaUNet") == "unet"


# --- weight of import --------------------------------------------------------------------------------------------


def heavy_after(code: str, cwd: Path) -> list[str]:
    """Which of the heavy libraries are loaded after some code has run."""
    report = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    loaded: list[str] = json.loads(run(sys.executable, "-c", code + report, cwd=cwd).stdout.splitlines()[-1])
    return loaded


def test_the_check_for_heavy_imports_can_fail(tmp_path: Path) -> None:
    assert heavy_after("import torch", tmp_path) == ["torch"]


def test_import_is_light(tmp_path: Path) -> None:
    assert heavy_after("import xdyna, xdyna.configs, xdyna.configs.animate, xdyna.jobs, xdyna.cli", tmp_path) == []


def test_help_of_every_command_is_light(tmp_path: Path) -> None:
    code = (
        "import typer, xdyna.cli as cli\n"
        "group = typer.main.get_command(cli.app)\n"
        "names = group.list_commands(None)\n"
        "assert 'animate' in names, names\n"
        "for args in [['--help'], *([name, '--help'] for name in names)]:\n"
        "    assert cli.main(args) == 0, args\n"
    )
    assert heavy_after(code, tmp_path) == []


# --- archives ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what git ignores, so that building leaves nothing behind in the real one."""
    copy = tmp_path_factory.mktemp("checkout") / "xdyna"
    skipped = shutil.ignore_patterns(
        "__pycache__", "*.egg-info", ".venv*", ".git", ".scratch", ".typing", ".*_cache", ".hypothesis", "build",
        "dist", "runs", "demo.mp4*", "out.*",
    )  # fmt: skip
    shutil.copytree(ROOT, copy, ignore=skipped)
    return copy


@pytest.fixture(scope="module")
def archives(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive; the wheel is built from the latter's content, as pip does."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    return folder


def wheel_names(archives: Path) -> set[str]:
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        return set(wheel.namelist())


def test_wheel_holds_packages_configs_and_weights(archives: Path) -> None:
    names = wheel_names(archives)
    wanted = {name for suffix in (".py", ".yaml", ".json", ".safetensors") for name, _ in source_files(suffix)}
    assert "xdyna/configs/infer/auto.yaml" in wanted
    assert wanted <= names, sorted(wanted - names)
    assert "xdyna/py.typed" in names
    top = {name.split("/")[0] for name in names}
    assert top == {"xdyna", next(name for name in top if name.endswith(".dist-info"))}
    licences = {Path(name).name for name in names if "/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences


def test_source_archive_holds_tests_and_examples(archives: Path) -> None:
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(file.relative_to(ROOT))
        for folder in ("tests", "examples", "docs", "scripts", "configs", "xdyna", "adapters", "infer", "train")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.endswith(".egg-info")
    }
    wanted |= {"pyproject.toml", "constraints.txt", "Makefile", "NOTICE", "LICENSE", "CONTRIBUTING.md"}
    assert wanted <= names, sorted(wanted - names)


def make_venv(folder: Path) -> Path:
    """An empty venv that pip of the tests' own environment installs into; returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def lend_dependencies(python: Path) -> None:
    """Let a venv see what the tests' environment has installed, except its links to the checkout."""
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(python.parents[1])}))
    # A .pth file read from a folder that itself came from a .pth file is not followed, so the checkout stays away.
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def module_files(python: Path, cwd: Path, where: str, then: str = "") -> list[Path]:
    """Where some venv's python has every module of the package from.

    Args:
        python: of the venv.
        cwd: where it runs.
        where: expression of the file of the module called `name`.
        then: code that runs afterwards in the same process.
    """
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name, _ in source_files(".py")]
    assert "xdyna.adapters.dynamics" in modules
    code = (
        f"import importlib.util, pathlib, sys\nfor name in sys.argv[1:]:\n    print(pathlib.Path({where}).resolve())\n"
    )
    lines = run(python, "-c", code + then, *modules, cwd=cwd).stdout.splitlines()
    files = [Path(line) for line in lines if line.startswith("/")]
    assert len(files) == len(modules)
    return files


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(archives: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    run(*pip, next(archives.glob("*.whl")), cwd=tmp_path)
    lend_dependencies(python)
    script = python.with_name("xdyna")
    assert "animate" in run(script, "--help", cwd=tmp_path).stdout
    assert run(script, "--version", cwd=tmp_path).stdout.split()[1] == SETTINGS["project"]["version"]
    for name in ("photo.png", "dance.mp4", "dance.tracks.npz"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    few = ["--steps", "1", "--frames", "2", "--align", "none"]
    command = ["animate", "--ref", "photo.png", "--pose-video", "dance.mp4", "--model", "tiny", *few, "-o", "out.mp4"]
    animate = f"from xdyna.cli import main\nassert main({command}) == 0\n"
    files = module_files(python, tmp_path, "importlib.import_module(name).__file__", then=animate)
    assert all(file.is_relative_to(tmp_path / "venv") for file in files), files
    used = Path(json.loads((tmp_path / "out.mp4.json").read_text())["model"]["folder"])
    assert used.is_relative_to(tmp_path / "venv"), "the weights inside the wheel"


def test_editable_install_reads_the_checkout(checkout: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    lend = tmp_path / "build-tools"
    lend.mkdir()
    # Building inside the empty venv needs setuptools, found through PYTHONPATH for this one command.
    for pattern in ("setuptools*", "_distutils_hack"):
        for part in Path(sysconfig.get_path("purelib")).glob(pattern):
            (lend / part.name).symlink_to(part)
    run(*pip, "--no-build-isolation", "--editable", checkout, cwd=tmp_path, PYTHONPATH=str(lend))
    lend_dependencies(python)
    # That they can be imported is what the other tests show, whose own install is an editable one.
    files = module_files(python, tmp_path, "importlib.util.find_spec(name).origin")
    assert all(file.is_relative_to(checkout.resolve()) for file in files), files
    assert "animate" in run(python.with_name("xdyna"), "--help", cwd=tmp_path).stdout


def test_the_installed_script_is_on_the_path_of_these_tests(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "xdyna"
    assert script.is_file(), "the project is not installed in the tests' environment"
    assert run(script, "--version", cwd=tmp_path).stdout.startswith("xdyna ")


def test_constraints_pin_torch_without_a_local_suffix() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    named = {
        name
        for group in [SETTINGS["project"]["dependencies"], *SETTINGS["project"]["optional-dependencies"].values()]
        for name in [requirement_name(text) for text in group]
    }
    missing = named - {name.lower().replace("_", "-") for name in pins}
    assert missing <= {"controlnet-aux"}, "no pin: it brings torchvision and is left to the user's own resolution"


def requirement_name(text: str) -> str:
    for stop in "<>=![; ":
        text = text.partition(stop)[0]
    return text.lower().replace("_", "-")
