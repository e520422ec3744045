"""The explorer of notebook 00: choose two subnets by hand, see them drawn, measured, evaluated and compared.

`Explorer` is a box of widgets around two architectures, A and B, of which one is edited at a time. Everything that it
shows is available from code too: `explorer.arch`, `explorer.comparison()`, `explorer.place()`, `explorer.evaluate()`.
"""

import io
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import partial, wraps
from itertools import zip_longest
from threading import RLock

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from rsslib.backbones import Backbone
from rsslib.device import set_precision, use_threads
from rsslib.errors import InputError, Natural, checked
from rsslib.evaluate import evaluate_population
from rsslib.files import WEIGHTS
from rsslib.population import archs_from_table, get_buckets, sample_bucket
from rsslib.space import RESOLUTION, Arch, SearchSpace, as_space
from rsstudy.figures.populations import ACCURACY, COLUMN, SIZE, Captioned, new_figure, shade_buckets
from rsstudy.figures.protocol import draw_subnet
from rsstudy.figures.style import backbone_label, escape, label_of, panel_label, style_of
from rsstudy.plan import Run, Settings, check_folder_name
from rsstudy.store import POPULATION, finished_runs, read_record, read_table
from rsstudy.supernets import stored_supernet

LOOKS = {"A": {"color": "#c1121f", "linestyle": "-"}, "B": {"color": "#6a3fa0", "linestyle": "--"}}
LABELS = {"kernel": "Kernel", "expand": "Width", "depth": "Depth"}  # of the fields of Arch
UNIFORM_DRAWS = 100_000
CSS = """<style>
.rsslib-explorer .widget-toggle-buttons { display: flex; align-items: center; width: auto; }
.rsslib-explorer .widget-toggle-buttons > label { width: auto !important; margin: 0 4px 0 0; }
.rsslib-explorer .widget-button { width: 60px; padding: 0 2px; }
.rsslib-explorer .widget-button.mod-primary { width: 90px; }
.rsslib-explorer .widget-dropdown { width: 275px; }
.rsslib-explorer .widget-dropdown > label { width: 30px; }
.rsslib-explorer .widget-image { width: 100%; }
.rsslib-explorer .widget-hbox > .widget-toggle-buttons { margin-left: 6px; }
.rsslib-explorer .widget-gridbox { grid-template-columns: 54px 68px 43px repeat(4, 67px); }
.rsslib-explorer > .widget-hbox { flex-flow: row wrap; }
.rsslib-explorer > .widget-hbox > .widget-vbox { width: 437px; }
.rsslib-explorer > .widget-hbox > .widget-vbox + .widget-vbox { width: 400px; margin-left: 8px; }
.rsslib-explorer .widget-label, .rsslib-explorer .widget-html-content { line-height: 22px; white-space: nowrap; }
.rsslib-explorer .widget-label { height: 22px; margin: 1px; }
.rsslib-explorer, .rsslib-explorer .widget-box, .rsslib-explorer .widget-gridbox { overflow: visible; }
.rsslib-explorer .widget-toggle-button { width: 20px; padding: 0; margin: 1px; height: 22px; line-height: 22px; }
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
    """The figure as SVG, with the same bytes for the same figure."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rsslib"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _one_at_a_time(method: Callable) -> Callable:
    """Lock the explorer, because JupyterLab may deliver events on several threads of the kernel."""

    @wraps(method)
    def locked(self, *arguments):
        with self._lock:
            return method(self, *arguments)

    return locked


class Explorer(widgets.VBox):
    """Controls for two subnets of a backbone, what they look like, how large and how accurate they are.

    The finished runs of `profile` at `resolution` (pixels) in the settings' results folder are offered for the
    evaluation; `seed` is that of the random presets. Raises InputError for an invalid value.
    """

    @checked
    def __init__(
        self,
        profile: str = "smoke",
        settings: Settings | None = None,
        backbone: str | Backbone | SearchSpace = "mobilenet_v3",
        seed: Natural = 0,
        resolution: int = RESOLUTION,
    ):
        check_folder_name(profile, "a profile")
        space = as_space(backbone)
        self.space = space = replace(space.reference, resolution=resolution)
        self.profile = profile
        self.settings = settings or Settings()
        self.runs = finished_runs(self.settings.results, profile, space.name, resolution)
        self.rng = np.random.default_rng(seed)
        self.sizes = space.macs(space.sample(UNIFORM_DRAWS, np.random.default_rng(0))) / 1e6
        self.subnets = {"A": space.middle, "B": space.largest}
        self.accuracies = {}  # by run and subnet
        self._loaded = (None,)  # the run whose supernet is in memory, the supernet, its dataset
        self._showing = False  # while controls are set from the subnet, their changes are not the user's
        self._lock = RLock()
        self._make_controls()
        super().__init__([widgets.HTML(CSS), self._arranged()])
        self.add_class("rsslib-explorer")
        self._draw("B")
        self._choose_run()

    def _make_controls(self) -> None:
        """Make all widgets and connect them."""
        self.edited = widgets.ToggleButtons(options=["A", "B"], description="Edit")
        self.edited.observe(lambda change: self._show(), "value")
        self.everywhere, self.detail = {}, {}
        for field, label in LABELS.items():
            places = range(len(getattr(self.space.middle, field)))
            self.everywhere[field] = self._toggles(field, places, label)
            self.detail[field] = [self._toggles(field, (i,)) for i in places]
        self.buckets = {f"{bucket:g}": bucket for bucket in get_buckets(self.space)}
        self.presets = {}
        for name in ("smallest", "middle", "largest", "random", *self.buckets):
            button = self.presets[name] = widgets.Button(description=name)
            button.on_click(lambda button: self.preset(button.description))
        options = [(run_label(run), run) for run in self.runs] or [("no finished run", None)]
        self.run = widgets.Dropdown(options=options, description="Run")
        self.run.observe(lambda change: self._choose_run(), "value")
        self.button = widgets.Button(button_style="primary")
        self.button.on_click(lambda button: self.evaluate())
        self.drawings = {name: widgets.Image(format="svg+xml") for name in self.subnets}
        self.placing = widgets.Image(format="svg+xml")
        self.status, self.table = widgets.HTML(), widgets.HTML()

    def _toggles(self, field: str, places: Container[int], label: str = "") -> widgets.ToggleButtons:
        """Buttons that set a field of the subnet in some places."""
        choices = sorted(getattr(self.space, f"{field}s"))
        buttons = widgets.ToggleButtons(options=choices, description=label, value=None)
        buttons.observe(partial(self._set, field, places), "value")
        return buttons

    def _arranged(self) -> widgets.Box:
        """Controls over the two subnets' drawings; beside them, or below on a narrow page, their numbers."""
        headings = ("", "Depth", "", "Layer 1", "Layer 2", "Layer 3", "Layer 4")
        cells = [widgets.Label(text) for text in headings]
        depths = iter(self.detail["depth"])
        for s, stage in enumerate(self.space.backbone.stages):
            row = [
                widgets.HTML(f"Stage {s + 1}<br>{stage.channels} ch"),
                next(depths) if stage.elastic_depth else widgets.Label(),
                widgets.HTML("Kernel<br>Width"),
            ]
            for i, layer in enumerate(self.space.layers):
                if layer.stage == s:
                    row.append(widgets.VBox([self.detail["kernel"][i], self.detail["expand"][i]]))
            cells += row + [widgets.Label()] * (len(headings) - len(row))
        presets = list(self.presets.values())
        left = [
            widgets.HBox([self.edited, *presets[:4]]),
            widgets.HBox([widgets.Label("MFLOPs"), *presets[4:]]),
            widgets.HBox([widgets.Label("All"), *self.everywhere.values()]),
            widgets.GridBox(cells),
            *self.drawings.values(),
        ]
        right = [widgets.HBox([self.run, self.button]), self.status, self.placing, self.table]
        return widgets.HBox([widgets.VBox(left), widgets.VBox(right)])

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
        """Edit the smallest, middle, largest or a random subnet; or "4", a random one of that bucket."""
        if name == "random":
            self.arch = self.space.sample_arch(self.rng)
        elif name in self.buckets:
            (row,) = sample_bucket(self.space, self.buckets[name], 1, self.rng)
            self.arch = self.space.to_arch(row)
        else:
            self.arch = getattr(self.space, name)

    @_one_at_a_time
    def _set(self, field: str, places: Container[int], change: Mapping) -> None:
        """Set a field of the subnet in some places to what a control has changed to."""
        if change["new"] is not None and not self._showing:
            values = enumerate(getattr(self.arch, field))
            new = tuple(change["new"] if i in places else value for i, value in values)
            self.arch = replace(self.arch, **{field: new})

    @_one_at_a_time
    def _show(self) -> None:
        """Set every control from the subnet, and draw it."""
        used = {i for i, *_ in self.space.active(self.arch)}
        self._showing = True
        for field, controls in self.detail.items():
            values = getattr(self.arch, field)
            self.everywhere[field].value = values[0] if len(set(values)) == 1 else None
            for i, (control, value) in enumerate(zip(controls, values, strict=True)):
                control.value = value
                control.disabled = field != "depth" and i not in used
        self._showing = False
        self.button.description = f"Evaluate {self.edited.value}"
        self._say(self.hint)
        self._draw(self.edited.value)
        self._show_results()

    def _draw(self, name: str) -> None:
        figure = draw_subnet(self.space, self.subnets[name], (5.3, 1.95))
        (axes,) = figure.axes
        axes.set_title(f"{name}: {axes.get_title()}", color=LOOKS[name]["color"])
        self.drawings[name].value = svg(figure)

    # --- its accuracy

    @_one_at_a_time
    def _choose_run(self) -> None:
        """Show the population of the chosen run."""
        run = self.run.value
        self.population = None
        self.button.disabled = True
        self.hint = (
            f"There is no finished run of {backbone_label(self.space.backbone.name)} at profile {self.profile} yet, so "
            "no subnet can be evaluated; the rest works without. Notebook 02_main_results trains some: then run this "
            "cell again."
        )
        if run is not None:
            folder = run.folder(self.settings.results)
            population = read_table(folder, POPULATION, read_record(folder))
            sizes = self.space.macs(self.space.to_rows(archs_from_table(population))) / 1e6
            self.population = population.assign(mflops=sizes)
            self.button.disabled = not (folder / WEIGHTS).exists()
            self.hint = "Ready to evaluate subnets with this run."
            if self.button.disabled:
                self.hint = (
                    "The weights of this run are not here, they stay on the machine that trained it: its population is "
                    "shown, but no other subnet can be evaluated."
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
        try:
            if self._loaded[0] != run:
                self._loaded = run, *stored_supernet(run, self.settings)
            _, supernet, images = self._loaded
            set_precision(self.settings.precision)  # PyTorch's default is lower than that of evaluations in runs
            with use_threads(self.settings.threads):
                table = evaluate_population(supernet, [(0, arch)], images, progress=False)
        except InputError as error:
            self._say(f"{name} was not evaluated: {error}")
            return None
        accuracy = self.accuracies[run, arch] = table["accuracy"].item()
        self._say(f"{name}: {accuracy:.2f} % of {len(images.x_test):,} test images correct.")
        self._show_results()
        return accuracy

    @property
    def evaluated(self) -> dict[str, float]:
        """Accuracy in percent of those of A and B that were evaluated with the chosen run."""
        keys = {name: (self.run.value, arch) for name, arch in self.subnets.items()}
        return {name: self.accuracies[key] for name, key in keys.items() if key in self.accuracies}

    def _say(self, text: str) -> None:
        self.status.value = f'<div class="text">{escape(text)}</div>'

    # --- what is shown of both

    def _show_results(self) -> None:
        self.placing.value = svg(self.place())
        note = (
            "Stages: kernel/width of each layer. Sizes are reference sizes, for "
            f"3×{self.space.resolution}×{self.space.resolution} images and 100 classes."
        )
        self.table.value = f'{self.comparison().to_html(border=0, justify="left")}<div class="text">{note}</div>'

    def comparison(self) -> DataFrame:
        """A and B side by side, as text: sizes, share of uniform draws that are smaller, accuracy, settings."""
        space = self.space
        numbers = DataFrame(
            {
                name: {
                    "MFLOPs": (size := space.macs(arch) / 1e6),
                    "parameters (M)": space.parameters(arch) / 1e6,
                    "larger than (% of draws)": 100 * (self.sizes < size).mean(),
                    "accuracy (%)": self.evaluated.get(name, np.nan),
                }
                for name, arch in self.subnets.items()
            }
        )
        table = numbers.map("{:.2f}".format)
        table["B - A"] = (numbers["B"] - numbers["A"]).map("{:+.2f}".format)
        for s in range(len(space.backbone.stages)):
            a, b = (
                [f"{kernel}/{expand}" for _, layer, kernel, expand in space.active(arch) if layer.stage == s]
                for arch in self.subnets.values()
            )
            different = f"{sum(one != other for one, other in zip_longest(a, b))} differ"
            table.loc[f"stage {s + 1}"] = " ".join(a), " ".join(b), different
        return table.replace({"nan": "–", "+nan": "–"})

    def place(self) -> Captioned:
        """Where A and B lie among uniform draws and in the chosen run's population; a star is an evaluated subnet."""
        space = self.space
        rows = 1 if self.population is None else 2
        figure, panels = new_figure(COLUMN, 1.25 * rows, rows, sharex=True)
        panels[0].hist(self.sizes, 60, color="0.7", histtype="stepfilled")
        panels[0].set_title(f"{len(self.sizes):,} uniform draws")
        if self.population is not None:
            colour = style_of(self.run.value.method.name).colour
            panels[1].plot("mflops", "accuracy", ".", data=self.population, color=colour, gid="population")
            panels[1].set(ylabel=ACCURACY, title=run_label(self.run.value))
        for name, arch in self.subnets.items():
            size = space.macs(arch) / 1e6
            for axes in panels:
                axes.axvline(size, label=name, gid=f"marker {name}", **LOOKS[name])
            if name in self.evaluated:
                axes.plot(size, self.evaluated[name], marker="*", markersize=11, gid=f"star {name}", **LOOKS[name])
        panels[0].legend(loc="upper right")
        for axes in panels:
            shade_buckets(axes, space)
        axes.set(xlabel=f"{SIZE}; grey: buckets", xticks=get_buckets(space))
        return figure
