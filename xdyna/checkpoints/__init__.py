"""Official files to and from our diffusers folders, tensor by tensor; the key maps are data.

`convert_official(find_official_files(folder), out)` writes a pipeline folder, `export_official(folder, out)` writes
official files from one. Importing this package loads nothing heavy.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "OfficialFiles": "layout",
    "Report": "assemble",
    "TensorFile": "tensor_files",
    "convert_official": "convert",
    "export_official": "export",
    "find_official_files": "layout",
}


def __dir__() -> list[str]:
    return sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
