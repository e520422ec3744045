"""Campaigns: many runs planned, trained once each, kept in folders and read as tables. Names: `__init__.pyi`."""

import lazy_loader

# PyTorch takes seconds to import; what plans and checks has no need of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
