"""Once-for-all supernets: search spaces, samplers, training methods, evaluation.

The public names are listed in `__init__.pyi`.
"""

import lazy_loader

# Names are loaded on first use: PyTorch takes seconds to import, and planning does not need it.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_MOVED = {
    "complete": "rsstudy.engine",
    "plan": "rsstudy.plan",
    "Settings": "rsstudy.plan",
    "campaign": "rsstudy",
    "paper": "rsstudy",
}


def __getattr__(name: str):
    if name in _MOVED:
        raise ImportError(f"{name} is no longer in rsslib: see {_MOVED[name]}")
    return _load(name)
