"""What identifies a sampler in a run's record: its settings and, unless it is this package's own, its code.

Two samplers are the same if their classes do the same by the same settings: equal code (with default arguments, what a
closure holds, the globals it uses and what it takes from modules of the user's own), equal class attributes, equal
attributes. Names of files, addresses in memory and comments do not count; the version of Python does, since it decides
the code.
"""

import dis
import enum
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from rsslib.errors import InputError
from rsslib.samplers import Repeated, Sampler

PACKAGE = __name__.partition(".")[0]
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented))
MADE_BY_PYTHON = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__doc__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotations__",
    "__annotate_func__",
    "__annotations_cache__",
    "__dataclass_fields__",
    "__dataclass_params__",
}
OF_SLOTS = ("member_descriptor", "getset_descriptor", "_abc_data")


def sampler_identity(sampler: Sampler) -> str:
    """Words that are equal for samplers that draw the same, here and in another process.

    For the package's own samplers their settings; a change of their code is told by `record.CODE_VERSION`. For others
    the settings and a digest of them and of the code. Raises InputError where they hold something whose content cannot
    be told, as an open file: keep its settings instead, or give the sampler a `__getstate__` that does.
    """
    kind = type(sampler)
    if isinstance(sampler, Repeated):  # of any sampler
        return f"Repeated(sampler={sampler_identity(sampler.sampler)}, times={sampler.times!r})"
    if kind.__module__.partition(".")[0] == PACKAGE:
        return repr(sampler)
    digest = hashlib.sha256(repr(_content(sampler, f"the sampler {kind.__name__}", {})).encode()).hexdigest()[:16]
    return f"{kind.__name__}, settings and code {digest}"


def _content(value: Any, what: str, seen: dict[int, int]) -> Any:
    """The value as nested tuples of plain ones."""
    if isinstance(value, enum.Enum):
        return type(value).__qualname__, value.name
    if isinstance(value, PLAIN):
        return type(value).__name__, repr(value)
    if id(value) in seen:
        return "seen", seen[id(value)]
    seen = seen if isinstance(value, type | FunctionType) else dict(seen)  # others may be shared by chance
    seen[id(value)] = len(seen)
    if isinstance(value, ModuleType):
        return "module", value.__name__
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            return "array", [_content(item, what, seen) for item in np.ravel(value).tolist()]
        return "array", value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, tuple | list):
        return type(value).__name__, [_content(item, what, seen) for item in value]
    if isinstance(value, Set):
        return "set", sorted(repr(_content(item, what, seen)) for item in value)
    if isinstance(value, Mapping):
        return "mapping", [(_content(k, what, seen), _content(v, what, seen)) for k, v in value.items()]
    if isinstance(value, FunctionType):
        return _function(value, what, seen)
    if isinstance(value, MethodType):
        return "method", _content(value.__self__, what, seen), _content(value.__func__, what, seen)
    if isinstance(value, functools.partial):
        return "partial", [_content(part, what, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, staticmethod | classmethod):
        return type(value).__name__, _content(value.__func__, what, seen)
    if isinstance(value, property):
        return "property", [_content(part, what, seen) for part in (value.fget, value.fset, value.fdel)]
    if isinstance(value, functools.cached_property):
        return "property", _content(value.func, what, seen)
    if isinstance(value, type):
        return _class(value, what, seen)
    if isinstance(value, BuiltinFunctionType):
        return "built in", value.__module__, value.__qualname__
    if hasattr(value, "__array__"):  # tensors, tables
        return type(value).__name__, _content(np.asarray(value), what, seen)
    return _object(value, what, seen)


def _object(value: Any, what: str, seen: dict[int, int]) -> Any:
    """An object by what it could be made from again: by default its class and its attributes."""
    try:
        made = value.__reduce_ex__(4)
    except TypeError:  # of files, locks and the like
        raise InputError(
            f"{what} holds a {type(value).__name__}, whose content cannot be told, so that runs with it could not be "
            "told apart: keep what it is made from, or give the sampler a __getstate__ that returns its settings"
        ) from None
    parts = [made] if isinstance(made, str) else [list(p) if isinstance(p, Iterator) else p for p in made]
    return "object", [_content(part, what, seen) for part in parts]


def _class(kind: type, what: str, seen: dict[int, int]) -> Any:
    """A class by what it and its bases define; one of an installed package by its name."""
    if _is_installed(kind.__module__):
        return "class", kind.__module__, kind.__qualname__
    own = {name: member for name, member in vars(kind).items() if type(member).__name__ not in OF_SLOTS}
    members = [(name, _content(own[name], what, seen)) for name in sorted(own.keys() - MADE_BY_PYTHON)]
    return "class", kind.__qualname__, members, [_content(base, what, seen) for base in kind.__bases__]


def _function(function: FunctionType, what: str, seen: dict[int, int]) -> Any:
    if _is_installed(function.__module__):
        return "function", function.__module__, function.__qualname__
    codes = list(_codes(function.__code__))
    looked_up = {i.argval for c in codes for i in dis.get_instructions(c) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    used = {name: function.__globals__[name] for name in sorted(looked_up) if name in function.__globals__}
    held = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # one that is empty yet
            held.append(cell.cell_contents)
    parts = [function.__defaults__, function.__kwdefaults__, held, used]
    if reached := _reached([*used.values(), *held], sorted({name for c in codes for name in c.co_names})):
        parts.append(reached)  # where there is none, nothing, as in records from before these counted
    return "function", _code(function.__code__), [_content(part, what, seen) for part in parts]


def _reached(values: list, names: list[str]) -> dict[str, Any]:
    """What code with these names can take from those of the values that are modules of the user's own."""
    reached: dict[str, Any] = {}
    for module in values:  # which grows by the modules in these
        if isinstance(module, ModuleType) and not _is_installed(module.__name__):
            taken = [name for name in names if name in vars(module) and not name.startswith("__")]  # nor its file
            new = {f"{module.__name__}.{name}": vars(module)[name] for name in taken}
            values += [value for key, value in new.items() if key not in reached]
            reached |= new
    return reached


def _code(code: CodeType) -> Any:
    """What a function does, whichever file it is from; a class that came from another process has no source."""
    constants = [
        _code(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is this package's, Python's or an installed one: not the user's own."""
    top = (module or "").partition(".")[0]
    if top in ("", "__main__", "__mp_main__"):
        return False
    if top == PACKAGE or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and "site-packages" in Path(file).parts
