"""Make `.typing/xdyna`, the folder of links in which type checkers see the package as it looks when installed.

In the checkout `adapters/`, `configs/` and their like lie beside `xdyna/` and are joined to it when it is imported.
Type checkers do not run code, so they get a folder where everything lies under `xdyna/`. Run again after adding a
module.
"""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make the folder anew; it holds nothing but links."""
    folder = ROOT / ".typing" / "xdyna"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for target in sorted((ROOT / "xdyna").iterdir()):
        if target.name != "__pycache__":
            (folder / target.name).symlink_to(target)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, source in settings["tool"]["setuptools"]["package-dir"].items():
        if package != "xdyna":
            (folder / package.removeprefix("xdyna.")).symlink_to(ROOT / source)


if __name__ == "__main__":
    main()
