"""Once-for-all supernets: search spaces, samplers, training methods, evaluation, deployment.

`__init__.pyi` lists the public names and their modules.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

# A module is imported at the first use of one of its names: PyTorch takes seconds, and planning does not need it.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = {name: module for module, name in re.findall(r"from (\S+) import (\S+) as", _STUB)}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"rsslib has no {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
