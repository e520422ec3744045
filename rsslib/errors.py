"""Errors that the user can fix, and the checks that raise them; nothing here needs PyTorch.

Each is one sentence: the value, what was expected, what to do.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from types import ModuleType
from typing import Any

PRECISIONS = ("fp32", "tf32", "bf16")


class InputError(ValueError):
    """A parameter, file or folder that cannot be used."""

    def _render_traceback_(self) -> list[str]:  # IPython, and so Jupyter and papermill, shows this instead of a stack
        return [f"InputError: {self}"]


class NoImages(InputError):
    """A dataset is missing and could not be downloaded."""


class CaptureFailed(InputError):
    """A CUDA graph could not be captured, which leaves PyTorch's allocator of this process in a capture for good."""


class Stopped(KeyboardInterrupt):
    """Interrupted by Ctrl-C; the message says how to resume."""

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


def shortened(text: str, most: int = 120) -> str:
    """Return `text`, without its middle if it is longer than `most`: foreign files may hold text of any length.

    >>> shortened("a" * 50 + "b" * 50, 20)
    'aaaaaaaaaa ... bbbbbbbbbb'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def one_line(error: BaseException) -> str:
    """Return another package's error message as part of a sentence: on one line, shortened, never empty."""
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
    close = difflib.get_close_matches(str(value).casefold(), folded, n=1, cutoff=0.5) if len(shown) <= 120 else []
    hint = f" (did you mean {folded[close[0]]!r}?)" if close else ""
    expected = shortened(", ".join(valid), 300)
    raise InputError(f"unknown {what} {shortened(shown)}{hint}: expected one of {expected}")


def check_number(value: Any, what: str, least: float, most: float | None = None, whole: bool = False) -> Any:
    """Return `value` as a Python number; raises InputError unless it is one, whole if `whole`, from `least` to `most`.

    NumPy's numbers count too.
    """
    kind: Any = Integral if whole else Real
    limit = most or sys.float_info.max
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= limit:
        expected = f"{'whole ' * whole}number of at least {least}" + (f" and at most {most}" if most else "")
        raise InputError(f"{what} is {shortened(repr(value))}: expected a {expected}")
    return int(value) if isinstance(value, Integral) else float(value)


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
    """Import the module `name`; raise InputError that names the extra with it if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package, _, _ = name.partition(".")
        raise InputError(f"{package} is not installed: pip install 'rsslib[{extra}]'") from None
