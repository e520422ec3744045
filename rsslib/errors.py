"""Errors that the user can fix, and the checks that raise them. This module does not need PyTorch.

Each message is one sentence: the value, what was expected, what to do.
"""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import wraps
from numbers import Integral, Real
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

PRECISIONS = ("fp32", "tf32", "bf16")
Count = Annotated[int, 1, 2**63 - 1]
Natural = Annotated[int, 0, 2**63 - 1]  # such as a seed
WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}
NUMBERS: dict[Any, Any] = {int: Integral, float: Real}
Checked = TypeVar("Checked", bound=Callable)


class InputError(ValueError):
    """A parameter, file or folder is invalid."""

    def __str__(self) -> str:
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:  # shown by IPython (Jupyter, papermill) instead of a stack trace
        return [f"InputError: {self}"]


class NoImages(InputError):
    """A dataset is missing and could not be downloaded."""


class CaptureFailed(InputError):
    """A CUDA graph could not be captured. PyTorch's allocator in this process then stays in a capture for good."""


class Stopped(KeyboardInterrupt):
    """Interrupted by Ctrl-C; the message says how to resume."""

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


def shortened(text: str, most: int = 120) -> str:
    """Return `text` without its middle if it is longer than `most`, because other people's files may hold any text.

    >>> shortened("a" * 50 + "b" * 50, 20)
    'aaaaaaaaaa ... bbbbbbbbbb'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def printable(text: str) -> str:
    """Return `text` with characters escaped that could control a terminal or hide in it, such as colours and new lines.

    >>> printable("cat\\x1b[2J")
    'cat\\\\x1b[2J'
    """
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def one_line(error: BaseException) -> str:
    """Return the error message of another package as part of a sentence: on one line, shortened, never empty."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 160)


def choose(value: str, valid: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `valid`; otherwise raise InputError with the valid values and the closest one.

    >>> choose("rs", ["rss", "ofa"], "method")
    Traceback (most recent call last):
    rsslib.errors.InputError: unknown method 'rs' (did you mean 'rss'?): expected one of rss, ofa
    """
    valid = list(valid)
    if value in valid:
        return value
    shown = repr(value)
    folded = {name.casefold(): name for name in valid}
    close: list[str] = []
    if len(shown) <= 120:
        close = difflib.get_close_matches(str(value).casefold(), folded, n=1, cutoff=0.5)
    hint = f" (did you mean {folded[close[0]]!r}?)" if close else ""
    expected = shortened(", ".join(valid), 300)
    raise InputError(f"unknown {what} {shortened(shown)}{hint}: expected one of {expected}")


def check_number(value: Any, what: str, least: float, most: float | None = None, whole: bool = False) -> Any:
    """Return `value` as a Python number; raises InputError unless it is a number from `least` to `most`.

    It must be whole if `whole` is true. NumPy numbers are accepted.
    """
    return check_type(value, what, Annotated[int if whole else float, least, most])


def check_room(needed: float, free: float, what: str, advice: str) -> None:
    """Raise InputError if `what` needs more than the `free` bytes of memory."""
    if needed > free:
        gigabytes = f"{needed / 2**30:.2g} GiB of memory, of which {free / 2**30:.2g} are free"
        raise InputError(f"{what} need {gigabytes}: {advice}")


def check_device_name(device: object) -> None:
    """Raise InputError unless `device` can name a device; `rsslib.device.choose_device` checks that it exists."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", device):
        raise InputError(f"device is {shortened(repr(device))}: expected auto, cpu, cuda or cuda:<number>")


def needed(name: str, extra: str) -> ModuleType:
    """Import the module `name`; raises InputError that names the extra to install if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package, _, _ = name.partition(".")
        raise InputError(f"{package} is not installed: pip install 'rsslib[{extra}]'") from None


# --- types of arguments -----------------------------------------------------------------------------------------------


def checked(function: Checked) -> Checked:
    """Make a function or a class check its arguments against its annotations before anything else.

    Raises InputError for an argument of another type, and for a number outside `Annotated[int, least, most]`. NumPy
    numbers become Python numbers, and sequences become tuples. Protocols and quoted names are not checked.
    """
    target: Any = function
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return function
    signature = inspect.signature(target)

    @wraps(target)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*arguments, **named)
        except TypeError as error:
            raise TypeError(f"{target.__qualname__}(): {error}") from None
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind != parameter.VAR_KEYWORD:
                bound.arguments[name] = check_type(value, name, parameter.annotation)
        return target(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def check_type(value: Any, what: str, kind: Any) -> Any:
    """Return `value` in the form of the annotation `kind`, as `checked` does; raises InputError for another type."""
    try:
        return _converted(value, kind)
    except TypeError:
        shown = " ".join(shortened(repr(value)).split())
        raise InputError(f"{what} is {shown}: expected {_described(kind)}") from None


def _converted(value: Any, kind: Any) -> Any:
    """Return `value` in the form of the annotation `kind`; raises TypeError for another type."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        number = _converted(value, parts[0])
        _, least, most = parts
        if least <= number and (most is None or number <= most):
            return number
    elif origin in (Union, UnionType):
        for part in parts:
            with suppress(TypeError):
                return _converted(value, part)
    elif origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
    elif kind in NUMBERS:
        if isinstance(value, NUMBERS[kind]) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return int(value) if isinstance(value, Integral) else float(value)
    elif origin in (tuple, Sequence):
        if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
            kinds = parts if parts[1:] and parts[1] is not ... else parts[:1] * len(value)
            if len(kinds) == len(value):
                return tuple(map(_converted, value, kinds))
    elif kind in (Any, inspect.Parameter.empty) or isinstance(kind, str) or getattr(kind, "_is_protocol", False):
        return value
    elif isinstance(value, origin):
        return value
    raise TypeError


def _described(kind: Any) -> str:
    """Return the values that `_converted` accepts, in words."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        base, least, most = parts
        upper = f" and at most {most}" if most and most < 2**63 - 1 else ""
        return f"{WORDS[base]} of at least {least}{upper}"
    if origin in (Union, UnionType):
        return " or ".join(map(_described, parts))
    if origin is Literal:
        return " or ".join(parts)
    if origin is Sequence or parts[1:] == (...,):
        return f"a list in which each entry is {_described(parts[0])}"
    return WORDS.get(origin) or f"an object of type {origin.__name__}"
