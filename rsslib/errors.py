"""Errors that are the user's to fix: one sentence, no traceback in a notebook or on the command line."""

import difflib
import importlib
import re
import sys
from collections.abc import Iterable
from types import ModuleType

MOST_LISTED = 29  # names in a sentence
PRECISIONS = ("fp32", "tf32", "bf16")


class InputError(ValueError):
    """A parameter, file or folder that cannot be used; the message says what was expected and what to do."""

    def _render_traceback_(self) -> list[str]:  # what IPython (so Jupyter and papermill) shows instead of a stack
        return [f"InputError: {self}"]


class NoImages(InputError):
    """A dataset is not here and could not be downloaded."""


class CaptureFailed(InputError):
    """A CUDA graph could not be captured, which leaves PyTorch's allocator of this process in a capture for good."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C; the message says how to go on."""

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


def shortened(text: str, most: int = 120) -> str:
    """The text, without its middle if it is long: a stranger's file may hold anything.

    >>> shortened("a" * 50 + "b" * 50, 20)
    'aaaaaaaaaa ... bbbbbbbbbb'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def one_line(error: BaseException) -> str:
    """What another package's error says, of whatever length and lines, as part of a sentence; else its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def choose(value: str, valid: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `valid`; else raise InputError naming the valid values and the closest one.

    >>> choose("rs", ["rss", "ofa"], "method")
    Traceback (most recent call last):
    rsslib.errors.InputError: unknown method 'rs' (did you mean 'rss'?): expected one of rss, ofa
    """
    valid = list(valid)
    if value in valid:
        return value
    shown = shortened(repr(value))
    close = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.5) if shown == repr(value) else []
    more = f" and {len(valid) - MOST_LISTED} others" if len(valid) > MOST_LISTED else ""
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"unknown {what} {shown}{hint}: expected one of {', '.join(valid[:MOST_LISTED])}{more}")


def check_number(value: float, what: str, least: float, most: float | None = None, whole: bool = False) -> None:
    """Raise InputError unless `value` is a number, whole if `whole`, from `least` to `most`."""
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= (most or sys.float_info.max):
        expected = f"{'whole ' * whole}number of at least {least}" + (f" and at most {most}" if most else "")
        raise InputError(f"{what} is {value!r}: expected a {expected}")


def check_room(needed: float, free: float, what: str, advice: str) -> None:
    """Raise InputError if `what` needs more than the free bytes of memory."""
    if needed > free:
        gigabytes = f"{needed / 2**30:.2g} GiB of memory, of which {free / 2**30:.2g} are free"
        raise InputError(f"{what} need {gigabytes}: {advice}")


def check_device_name(device: object) -> None:
    """Raise InputError unless `device` can name one; whether it is there, `machine.choose_device` says."""
    if not isinstance(device, str):
        raise InputError(f"device is {device!r}: expected auto, cpu, cuda or cuda:<number>")
    kind, _, _ = device.partition(":")
    choose(kind, ("auto", "cpu", "cuda"), "device")
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", device):
        raise InputError(f"device is {device!r}: expected auto, cpu, cuda or cuda:<number>")


def needed(name: str, extra: str) -> ModuleType:
    """The module `name`; raises InputError naming the extra that brings it if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed: pip install -e '.[{extra}]'") from None
