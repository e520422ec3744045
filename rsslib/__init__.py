"""Once-for-all supernets: search spaces, training methods, evaluation. The public names are in `__init__.pyi`."""

import lazy_loader

# PyTorch takes seconds to import; what plans and checks has no need of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
