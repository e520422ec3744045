"""How methods, datasets and backbones are called and look, in every figure, table and sentence."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rsstudy.catalogue import METHODS, OVERRIDES


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every figure."""

    label: str
    colour: str
    hatch: str = ""


# In the order of the paper's figures. The colours differ in lightness too and all but the first are hatched, so that
# neither colour blindness nor grey print merges them.
METHOD_STYLES = {
    "ofa": MethodStyle("OFA", "#1f5a99"),
    "ofa-released": MethodStyle("OFA (released code)", "#8cc3ee", "xxxxx"),
    "rss-short": MethodStyle("RSS-Short", "#f2a93b", "....."),
    "rss": MethodStyle("RSS", "#2a9d78", "/////"),
}
# RSS and RSS-Short share the looks of their ablations.
VARIANT_STYLES = {
    "per-batch": MethodStyle("1 per batch", "#c7667f", "\\\\\\\\\\"),
    "2-per-batch": MethodStyle("2 per batch", "#5b4636", "+++++"),
    "smallest": MethodStyle("smallest only", "#e7b8c4", "....."),
    "middle": MethodStyle("middle only", "#b0577a", "-----"),
    "largest": MethodStyle("largest only", "#4d2048"),
    "max-then-min": MethodStyle("Max then Min", "#b9a7dd", "|||||"),
    "min-then-max": MethodStyle("Min then Max", "#7656a8", "-----"),
    "alternating": MethodStyle("Alternating", "#33214f"),
}
# A change of a hyper-parameter has one hatch, and a tone of its method's colour that is far from it in lightness.
CHANGE_HATCHES = {"batch-128": "|||||", "dropout-0.3": "-----", "lr-0.02": "\\\\\\\\\\"}
CHANGE_COLOURS = {
    "ofa": ("#7fb2dd", "#a3aee6", "#74c2c2"),
    "ofa-released": ("#2f6ea5", "#4c5ba8", "#2a7f7f"),
    "rss-short": ("#a85a16", "#b03a2e", "#7f6312"),
}
SETTINGS = {"batch_size": "batch size {:g}", "dropout": "dropout {:g}", "learning_rate_scale": "learning rate × {:g}"}
METHOD_STYLES |= {
    f"{base}-{suffix}": replace(style, label=f"{METHOD_STYLES[base].label}, {style.label}")
    for base in METHOD_STYLES
    for suffix, style in VARIANT_STYLES.items()
    if f"{base}-{suffix}" in METHODS
}
METHOD_STYLES |= {
    f"{base}-{change}": MethodStyle(
        ", ".join([METHOD_STYLES[base].label, *(SETTINGS[name].format(value) for name, value in settings.items())]),
        colour,
        CHANGE_HATCHES[change],
    )
    for base, colours in CHANGE_COLOURS.items()
    for (change, settings), colour in zip(OVERRIDES.items(), colours, strict=True)
}
METHOD_STYLES |= {  # of rsstudy.catalogue; each is in figures with RSS or OFA, not with the paper's variants
    "rss-every-10-batches": MethodStyle("RSS, every 10 batches", "#9fd3c1", "xxxxx"),
    "rss-every-50-batches": MethodStyle("RSS, every 50 batches", "#5fb79b", "....."),
    "rss-every-3-epochs": MethodStyle("RSS, every 3 epochs", "#145a45", "-----"),
    "ofa-equal-passes": MethodStyle("OFA, shortened", "#1f5a99"),
    "sandwich": MethodStyle("Sandwich", "#f2a93b", "....."),
    "fair": MethodStyle("Strict fairness", "#b0577a", "-----"),
    "compound": MethodStyle("Compound", "#7656a8", "xxxxx"),
    "flops-aware": MethodStyle("FLOPs-aware", "#5b4636", "+++++"),
}
OTHER_STYLES = (("#c7667f", "\\\\\\\\\\"), ("#8a6fb0", "-----"), ("#9a9a9a", "|||||"), ("#5b4636", "+++++"))
BASELINES = ("ofa", "ofa-released")
PUBLISHED_AS = {"ofa-released": "ofa"}  # the study shows one OFA: both of ours are compared with it

DATASET_LABELS = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "Digits",
}
BACKBONE_LABELS = {"mobilenet_v3": "MobileNetV3", "proxylessnas": "ProxylessNAS"}


def method_styles(methods: Iterable[str], labels: Mapping[str, str] | None = None) -> dict[str, MethodStyle]:
    """The style of each of `methods`, in drawing order: the paper's order, then others as they come.

    `labels` has other names than the usual for some of them.
    """
    methods = list(dict.fromkeys(methods))
    others = [method for method in methods if method not in METHOD_STYLES]
    extra = {m: MethodStyle(m, *OTHER_STYLES[i % len(OTHER_STYLES)]) for i, m in enumerate(others)}
    styles = {m: style for m, style in (METHOD_STYLES | extra).items() if m in methods}
    return {m: replace(style, label=(labels or {}).get(m, style.label)) for m, style in styles.items()}


def style_of(method: str) -> MethodStyle:
    """The style of a method, alone."""
    return method_styles([method])[method]


def label_of(method: str) -> str:
    return style_of(method).label


def backbone_label(backbone: str) -> str:
    return BACKBONE_LABELS.get(backbone, backbone)


def panel_label(dataset: str, backbone: str = "mobilenet_v3") -> str:
    """A dataset's name as in the paper, with the backbone where it is not the main one."""
    label = DATASET_LABELS.get(dataset, dataset)
    return label if backbone == "mobilenet_v3" else f"{label} ({backbone_label(backbone)})"


def listed(items: Iterable, word: str = "and") -> str:
    """The items in words: a, b and c."""
    items = [str(item) for item in items]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"
