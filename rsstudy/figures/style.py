"""Names and looks of methods, datasets and backbones, in every figure and table."""

import csv
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

from rsstudy.catalogue import base_and_rate

# Names in figures, and keyword arguments of matplotlib's functions: LOOKS.seed for the marker of one seed.
NAMES = tomllib.loads(Path(__file__).with_name("looks.toml").read_text(encoding="utf-8"))
LOOKS = SimpleNamespace(**NAMES)


@dataclass(frozen=True)
class MethodStyle:
    """Label, colour and hatch of a method."""

    label: str
    colour: str
    hatch: str = ""


# In drawing order, which is the paper's. Colours also differ in lightness, and most methods have a hatch, so that
# colour-blind readers and grey print can distinguish methods of one figure.
with Path(__file__).with_name("method_styles.csv").open(encoding="utf-8") as _file:
    METHOD_STYLES = {row.pop("method"): MethodStyle(**row) for row in csv.DictReader(_file)}
BASELINES = ("ofa", "ofa-released")
PUBLISHED_AS = {"ofa-released": "ofa"}  # the paper shows a single OFA: both of ours are compared with it

DATASET_LABELS, BACKBONE_LABELS = NAMES["datasets"], NAMES["backbones"]


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """Styles of `methods` in drawing order: known methods first, then others as they come."""
    methods = dict.fromkeys(methods)
    others = [method for method in methods if method not in METHOD_STYLES]
    extra = {name: MethodStyle(name, **look) for name, look in zip(others, cycle(LOOKS.others), strict=False)}
    for name in others:
        base, rate = base_and_rate(name)
        if base in METHOD_STYLES:
            extra[name] = replace(METHOD_STYLES[base], label=f"{METHOD_STYLES[base].label}, rate × {rate:.2g}")
    return {name: style for name, style in (METHOD_STYLES | extra).items() if name in methods}


def style_of(method: str) -> MethodStyle:
    """Style of one method."""
    return method_styles([method])[method]


def label_of(method: str) -> str:
    return style_of(method).label


def backbone_label(backbone: str) -> str:
    return BACKBONE_LABELS.get(backbone, backbone)


def panel_label(dataset: str, backbone: str = "mobilenet_v3") -> str:
    """A dataset's name as in the paper, with the backbone if it is not the main one."""
    label = DATASET_LABELS.get(dataset, dataset)
    return label if backbone == "mobilenet_v3" else f"{label} ({backbone_label(backbone)})"


def listed(items: Iterable, word: str = "and") -> str:
    """Join items with commas and a last `word`: a, b and c."""
    *first, last = map(str, items)
    return f"{', '.join(first)} {word} {last}" if first else last


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, such as names from stored runs.

    >>> escape("<b>*3*</b>")
    '&#60;b&#62;&#42;3&#42;&#60;/b&#62;'
    """
    return re.sub(r"[&<>\"'`*_~|$\[\]\\]", lambda match: f"&#{ord(match[0])};", text)
