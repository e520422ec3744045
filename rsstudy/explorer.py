"""The explorer of notebook 00: choose two subnets by hand, see them drawn, measured, evaluated and compared.

`Explorer` is a box of widgets around two architectures, A and B, of which one is edited at a time. All that it shows
can be had from code too: `explorer.arch`, `explorer.comparison()`, `explorer.place()`, `explorer.evaluate()`.
"""

import html
import io
import time
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial, wraps
from itertools import zip_longest
from threading import RLock

import ipywidgets as widgets
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsslib.device import set_precision, use_threads
from rsslib.errors import InputError, check_number
from rsslib.evaluate import evaluate_population
from rsslib.files import WEIGHTS
from rsslib.population import archs_from_table, get_buckets, sample_bucket
from rsslib.space import RESOLUTION, Arch, SearchSpace
from rsstudy.engine import stored_supernet
from rsstudy.figures.populations import ACCURACY, COLUMN, SIZE, shade_buckets
from rsstudy.figures.protocol import draw_subnet
from rsstudy.figures.style import backbone_label, label_of, panel_label, style_of
from rsstudy.plan import Run, Settings, check_folder_name
from rsstudy.store import POPULATION, finished_runs, read_record, read_table

COLOURS = {"A": "#c1121f", "B": "#6a3fa0"}
LABELS = {"kernel": "Kernel", "expand": "Width", "depth": "Depth"}  # of the fields of Arch
UNIFORM_DRAWS = 100_000
CSS = """<style>
.rsslib-explorer .widget-toggle-buttons { display: flex; align-items: center; width: auto; }
.rsslib-explorer .widget-toggle-buttons > label { width: auto !important; margin: 0 4px 0 0; }
.rsslib-explorer .widget-button { padding: 0 2px; }
.rsslib-explorer .widget-label, .rsslib-explorer .widget-html-content { line-height: 22px; white-space: nowrap; }
.rsslib-explorer .widget-label { height: 22px; margin: 1px; }
.rsslib-explorer, .rsslib-explorer .widget-box, .rsslib-explorer .widget-gridbox { overflow: visible; }
.rsslib-explorer .widget-toggle-button { padding: 0; margin: 1px; height: 22px; line-height: 22px; }
.rsslib-explorer .widget-toggle-button.mod-active { background: #1f5a99; color: white; }
.rsslib-explorer .widget-toggle-button:disabled { opacity: 0.3; }
.rsslib-explorer table { font-size: 11px; line-height: 1.2; margin: 0; }
.rsslib-explorer th, .rsslib-explorer td { padding: 0 7px 0 0; text-align: left !important; white-space: nowrap; }
.rsslib-explorer .text { font-size: 12px; line-height: 1.25; padding: 2px 0; white-space: normal; }
</style>"""


def run_label(run: Run) -> str:
    """Dataset, method and seed of a run in words."""
    return f"{panel_label(run.dataset)}, {label_of(run.method.name)}, seed {run.seed}"


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rsslib"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _one_at_a_time(method):
    """JupyterLab may deliver what the user does on several threads of the kernel."""

    @wraps(method)
    def locked(self, *arguments):
        with self._lock:
            return method(self, *arguments)

    return locked


class Explorer(widgets.VBox):
    """Controls for two subnets of a backbone, what they look like, how large and how accurate they are.

    The finished runs of `profile` at `resolution` (pixels) in the settings' results folder are offered for the
    evaluation; `seed` is that of the random presets. Raises InputError, naming the value, for one that cannot be.
    """

    def __init__(
        self,
        profile: str = "smoke",
        settings: Settings | None = None,
        backbone: str = "mobilenet_v3",
        seed: int = 0,
        resolution: int = RESOLUTION,
    ):
        check_folder_name(profile, "a profile")
        check_number(seed, "seed", 0, 2**63 - 1, whole=True)
        self.space = space = SearchSpace(backbone, resolution=resolution)
        self.profile, self.settings = profile, settings or Settings()
        self.runs, self.population = finished_runs(self.settings.results, profile, backbone, resolution), None
        self.rng = np.random.default_rng(seed)
        self.sizes = np.sort(space.macs(space.sample(UNIFORM_DRAWS, np.random.default_rng(0))))
        self.subnets = {"A": space.middle, "B": space.largest}
        self.accuracies: dict[tuple[Run, Arch], float] = {}
        self._loaded: tuple = (None,)  # the run whose supernet is in memory, the supernet, its dataset
        self._showing = False  # while controls are set from the subnet, their changes are not the user's
        self._lock = RLock()

        def toggles(field: str, label: str = "", width: str = "20px") -> widgets.ToggleButtons:
            choices, style = sorted(getattr(space, f"{field}s")), {"button_width": width}
            return widgets.ToggleButtons(options=choices, description=label, value=None, style=style)

        self.edited = widgets.ToggleButtons(options=["A", "B"], description="Edit", style={"button_width": "40px"})
        self.everywhere = {field: toggles(field, label, "28px") for field, label in LABELS.items()}
        self.detail = {field: [toggles(field) for _ in getattr(space.middle, field)] for field in LABELS}
        self.presets = {}
        self.buckets = {f"{bucket:g}": bucket for bucket in get_buckets(space)}
        for name in ("smallest", "middle", "largest", "random", *self.buckets):
            width = "46px" if name in self.buckets else "70px"
            self.presets[name] = widgets.Button(description=name, layout={"width": width})
            self.presets[name].on_click(lambda button: self.preset(button.description))
        options = [(run_label(run), run) for run in self.runs] or [("no finished run", None)]
        self.run = widgets.Dropdown(options=options, description="Run", layout={"width": "275px"})
        self.run.style.description_width = "30px"
        self.button = widgets.Button(button_style="primary", layout={"width": "90px"})
        a, b, self.placing = (widgets.Image(format="svg+xml", layout={"width": "100%"}) for _ in range(3))
        self.drawings = {"A": a, "B": b}
        self.status, self.table = widgets.HTML(), widgets.HTML()

        self.edited.observe(lambda change: self._show(), "value")
        self.run.observe(lambda change: self._choose_run(), "value")
        self.button.on_click(lambda button: self.evaluate())
        for field, ones in self.detail.items():
            everywhere = range(len(ones))
            self.everywhere[field].observe(partial(self._set, field, everywhere), "value")
            for i in everywhere:
                ones[i].observe(partial(self._set, field, (i,)), "value")
        super().__init__([widgets.HTML(CSS), self._arranged()])
        self.add_class("rsslib-explorer")
        self._draw("B")
        self._choose_run()

    def _arranged(self) -> widgets.Box:
        """Controls over the two subnets' drawings; beside them, or below where the page is narrow, their numbers."""
        layers = max(stage.layers for stage in self.space.backbone.stages)
        cells: list[widgets.Widget] = [widgets.Label(text) for text in ("", "Depth", "")]
        cells += [widgets.Label(f"Layer {i + 1}") for i in range(layers)]
        depths = iter(self.detail["depth"])
        for s, stage in enumerate(self.space.backbone.stages):
            row = [widgets.HTML(f"Stage {s + 1}<br>{stage.channels} ch")]
            row.append(next(depths) if stage.elastic_depth else widgets.Label())
            row.append(widgets.HTML("Kernel<br>Width"))
            for i in (i for i, layer in enumerate(self.space.layers) if layer.stage == s):
                row.append(widgets.VBox([self.detail["kernel"][i], self.detail["expand"][i]]))
            cells += row + [widgets.Label() for _ in range(3 + layers - len(row))]
        grid = widgets.GridBox(cells, layout={"grid_template_columns": f"54px 68px 43px repeat({layers}, 67px)"})
        named, buckets = list(self.presets.values())[:4], list(self.presets.values())[4:]
        presets = widgets.HBox([self.edited, *named])
        sizes = widgets.HBox([widgets.Label("MFLOPs"), *buckets])
        uniform = widgets.HBox([widgets.Label("All"), *self.everywhere.values()], layout={"grid_gap": "4px"})
        left = widgets.VBox([presets, sizes, uniform, grid, *self.drawings.values()], layout={"width": "437px"})
        right = [widgets.HBox([self.run, self.button]), self.status, self.placing, self.table]
        right = widgets.VBox(right, layout={"width": "400px", "margin": "0 0 0 8px"})
        return widgets.Box([left, right], layout={"flex_flow": "row wrap"})

    # --- the subnet

    @property
    def arch(self) -> Arch:
        """The subnet being edited; set it to move the controls."""
        return self.subnets[self.edited.value]

    @arch.setter
    def arch(self, arch: Arch) -> None:
        self.subnets[self.edited.value] = self.space.validate(arch)
        self._show()

    @_one_at_a_time
    def preset(self, name: str) -> None:
        """Edit the smallest, middle, largest or a random subnet; or "4", a random one of that bucket of the study."""
        if name == "random":
            self.arch = self.space.sample_arch(self.rng)
        elif name in self.buckets:
            self.arch = self.space.to_arch(sample_bucket(self.space, self.buckets[name], 1, self.rng)[0])
        else:
            self.arch = getattr(self.space, name)

    @_one_at_a_time
    def _set(self, field: str, places: Container[int], change: Mapping) -> None:
        if change["new"] is not None and not self._showing:
            values = [change["new"] if i in places else value for i, value in enumerate(getattr(self.arch, field))]
            self.arch = replace(self.arch, **{field: tuple(values)})

    @_one_at_a_time
    def _show(self) -> None:
        """Set every control from the subnet, and draw it."""
        used = {i for i, *_ in self.space.active(self.arch)}
        self._showing = True
        for field, ones in self.detail.items():
            values = getattr(self.arch, field)
            self.everywhere[field].value = values[0] if len(set(values)) == 1 else None
            for i, (one, value) in enumerate(zip(ones, values, strict=True)):
                one.value, one.disabled = value, field != "depth" and i not in used
        self._showing = False
        self.button.description = f"Evaluate {self.edited.value}"
        self._say(self.hint)
        self._draw(self.edited.value)
        self._show_results()

    def _draw(self, name: str) -> None:
        figure = draw_subnet(self.space, self.subnets[name], (5.3, 1.95))
        figure.axes[0].set_title(f"{name}: {figure.axes[0].get_title()}", color=COLOURS[name])
        self.drawings[name].value = svg(figure)

    # --- its accuracy

    @_one_at_a_time
    def _choose_run(self) -> None:
        run, self.population, self.button.disabled = self.run.value, None, True
        if run is None:
            backbone = backbone_label(self.space.backbone.name)
            self.hint = (
                f"There is no finished run of {backbone} at profile {self.profile} yet, so no subnet can be evaluated; "
                "the rest works without. Notebook 02_main_results trains some: then run this cell again."
            )
        else:
            folder = run.folder(self.settings.results)
            population = read_table(folder, POPULATION, read_record(folder))
            sizes = self.space.macs(self.space.to_rows(archs_from_table(population))) / 1e6
            self.population = population.assign(mflops=sizes)
            self.button.disabled = not (run.folder(self.settings.results) / WEIGHTS).exists()
            self.hint = "Ready to evaluate subnets with this run."
            if self.button.disabled:
                self.hint = (
                    "The weights of this run are not here, they stay on the machine that trained it: its population "
                    "is shown, but no other subnet can be evaluated."
                )
        self._show()

    @_one_at_a_time
    def evaluate(self) -> float | None:
        """Test accuracy in percent of the subnet being edited, with the chosen run, after recalibration of its BN.

        None if it cannot be evaluated; the status line says why.
        """
        name, arch, run = self.edited.value, self.arch, self.run.value
        if self.button.disabled:
            return None
        self._say(f"Evaluating {name} ...")
        began = time.perf_counter()
        try:
            if self._loaded[0] != run:
                self._loaded = run, *stored_supernet(run, self.settings)
            _, supernet, images = self._loaded
            set_precision(self.settings.precision)  # PyTorch's own is less than that of evaluations in runs
            with use_threads(self.settings.threads):
                accuracy = evaluate_population(supernet, [(0, arch)], images, progress=False)["accuracy"].item()
        except InputError as error:
            self._say(f"{name} was not evaluated: {error}")
            return None
        self.accuracies[run, arch] = accuracy
        seconds = time.perf_counter() - began
        self._say(f"{name}: {accuracy:.2f} % of {len(images.x_test):,} test images correct, in {seconds:.1f} s.")
        self._show_results()
        return accuracy

    @property
    def evaluated(self) -> dict[str, float]:
        """Accuracy in percent of those of A and B that were evaluated with the chosen run."""
        known = {name: self.accuracies.get((self.run.value, arch)) for name, arch in self.subnets.items()}
        return {name: accuracy for name, accuracy in known.items() if accuracy is not None}

    def _say(self, text: str) -> None:
        self.status.value = f'<div class="text">{html.escape(text)}</div>'

    # --- what is shown of both

    def _show_results(self) -> None:
        self.placing.value = svg(self.place())
        pixels = self.space.resolution
        note = f"Stages: kernel/width of each layer. Sizes are those for 3×{pixels}×{pixels} images and 100 classes."
        self.table.value = f'{self.comparison().to_html(border=0, justify="left")}<div class="text">{note}</div>'

    def comparison(self) -> pd.DataFrame:
        """A and B side by side, as text: sizes, share of uniform draws that are smaller, accuracy, settings."""
        space, subnets, rows = self.space, list(self.subnets.values()), {}
        macs = [space.macs(arch) for arch in subnets]
        for name, (a, b) in {
            "MFLOPs": [m / 1e6 for m in macs],
            "parameters (M)": [space.parameters(arch) / 1e6 for arch in subnets],
            "larger than (% of draws)": 100 * np.searchsorted(self.sizes, macs) / len(self.sizes),
            "accuracy (%)": [self.evaluated.get(name, np.nan) for name in self.subnets],
        }.items():
            rows[name] = [f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"]
        for s in range(len(space.backbone.stages)):
            a, b = ([f"{k}/{e}" for _, layer, k, e in space.active(arch) if layer.stage == s] for arch in subnets)
            different = sum(one != other for one, other in zip_longest(a, b))
            rows[f"stage {s + 1}"] = [" ".join(a), " ".join(b), f"{different} differ" if different else "same"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["A", "B", "B - A"])
        return table.replace({"nan": "–", "+nan": "–"})

    def place(self) -> Figure:
        """Where A and B lie among uniform draws and in the chosen run's population; a star is an evaluated subnet."""
        space, rows = self.space, 1 if self.population is None else 2
        figure = Figure((COLUMN, 1.25 * rows), layout="constrained")
        panels = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
        low, high = (space.macs(arch) / 1e6 for arch in (space.smallest, space.largest))
        edges = np.linspace(np.floor(low), np.ceil(high), 121)
        share = 100 * np.histogram(self.sizes / 1e6, edges)[0] / len(self.sizes)
        panels[0].stairs(share, edges, fill=True, color="0.7")
        panels[0].set(ylabel="Share (%)", title=f"{len(self.sizes):,} uniform draws", ylim=(0, 1.15 * share.max()))
        if self.population is not None:
            colour = style_of(self.run.value.method.name).colour
            dots = {"s": 9, "color": colour, "alpha": 0.8, "linewidths": 0, "gid": "population"}
            panels[1].scatter(self.population["mflops"], self.population["accuracy"], **dots)
            panels[1].set(ylabel=ACCURACY, title=run_label(self.run.value))
        larger = max("BA", key=lambda name: space.macs(self.subnets[name]))
        for name, arch in self.subnets.items():
            x, right = space.macs(arch) / 1e6, name == larger
            look = {"color": COLOURS[name], "linestyle": "-" if name == "A" else "--", "linewidth": 1.2, "zorder": 3}
            for axes in panels:
                axes.axvline(x, **look, gid=f"marker {name}")
            note = {"textcoords": "offset points", "xytext": (2 if right else -2, -2), "va": "top"}
            note |= {"xycoords": ("data", "axes fraction"), "ha": "left" if right else "right", "fontweight": "bold"}
            panels[0].annotate(name, (x, 1), color=COLOURS[name], **note)
            if name in self.evaluated:
                star = {"marker": "*", "markersize": 13, "color": COLOURS[name], "markeredgecolor": "white"}
                panels[1].plot(x, self.evaluated[name], gid=f"star {name}", zorder=5, **star)
        for axes in panels:
            shade_buckets(axes, space)
        room = 0.07 * (high - low)
        panels[-1].set(xlabel=f"{SIZE}; grey: buckets", xlim=(low - room, high + room), xticks=get_buckets(space))
        return figure
