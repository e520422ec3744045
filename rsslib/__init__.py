"""Once-for-all supernets: search spaces, samplers, training methods, evaluation, deployment.

The public names and their modules are listed in `__init__.pyi`.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

# A module is imported when one of its names is used first: PyTorch takes seconds, and planning does without it.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = {name: module for module, name in re.findall(r"from (\S+) import (\S+) as", _STUB)}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"rsslib has no {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
