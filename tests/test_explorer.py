"""rsstudy.explorer without a browser: controls, subnet, numbers and figures agree; evaluation is the library's."""

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsslib.population import get_buckets, half_bucket, sample_population
from rsslib.space import Arch, SearchSpace
from rsstudy import explorer as module
from rsstudy.engine import complete
from rsstudy.explorer import Explorer
from rsstudy.figures.populations import set_style
from rsstudy.figures.protocol import draw_subnet
from rsstudy.plan import PROFILES, Settings, plan
from rsstudy.store import POPULATION_SEED, read_record, write_record

TINY = replace(
    PROFILES["smoke"],
    train_images=64,
    test_images=60,
    supernet_epochs=1,
    shrinking_epochs=1,
    subnets_per_bucket=1,
)


REAL_SVG = module.svg


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Draw few subnets, and show the ids in figures instead of rendering them."""
    set_style()
    monkeypatch.setattr(module, "UNIFORM_DRAWS", 2_000)
    monkeypatch.setattr(module, "svg", lambda figure: "".join(f'id="{gid}"' for gid in gids(figure)).encode())


@pytest.fixture
def rendered(monkeypatch):
    """Render figures; request this before the explorer."""
    monkeypatch.setattr(module, "svg", REAL_SVG)


def gids(figure) -> list[str]:
    return [artist.get_gid() for artist in figure.findobj(lambda artist: artist.get_gid())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with one finished run."""
    results = tmp_path_factory.mktemp("results")
    complete(plan(TINY, methods=["rss-short"]), Settings(results, device="cpu", progress=False))
    return results


@pytest.fixture
def results(trained, tmp_path):
    """A copy of `trained`, to be changed."""
    return shutil.copytree(trained, tmp_path / "results")


def run_folder(results):
    (record,) = results.glob("*/*/*/*/*/run.json")
    return record.parent


@pytest.fixture
def bare(tmp_path):
    """An explorer without runs."""
    return Explorer(settings=Settings(tmp_path))


def text(widget) -> str:
    return re.sub(r"<[^>]*>", "", widget.value)


def drawn(image) -> set[str]:
    """The ids that the explorer gives to parts of an SVG."""
    return set(re.findall(r'id="((?:layer|star|marker|population)[^"]*)"', bytes(image.value).decode()))


def controls(explorer) -> Arch:
    """The architecture that the controls of each layer and stage show."""
    return Arch(**{field: tuple(one.value for one in ones) for field, ones in explorer.detail.items()})


def assert_shows(explorer, arch: Arch) -> None:
    """Assert that controls, numbers and drawing are those of `arch`."""
    space, name = explorer.space, explorer.edited.value
    assert explorer.arch == explorer.subnets[name] == controls(explorer) == arch
    for field, control in explorer.everywhere.items():
        values = set(getattr(arch, field))
        assert control.value == (values.pop() if len(values) == 1 else None)
    used = {i for i, *_ in space.active(arch)}
    for field in ("kernel", "expand"):
        assert [not one.disabled for one in explorer.detail[field]] == [i in used for i in range(space.n_layers)]
    assert drawn(explorer.drawings[name]) >= {f"layer {i}" for i in used}
    assert sum(gid.startswith("layer") for gid in drawn(explorer.drawings[name])) == len(used)
    table = explorer.comparison()
    assert table.loc["MFLOPs", name] == f"{space.macs(arch) / 1e6:.2f}"
    assert table.loc["parameters (M)", name] == f"{space.parameters(arch) / 1e6:.2f}"
    assert f">{table.loc['MFLOPs', name]}<" in explorer.table.value


# --- choosing


def test_starts_with_the_middle_and_the_largest(rendered, bare):
    assert_shows(bare, bare.space.middle)
    assert bare.subnets["B"] == bare.space.largest and len(drawn(bare.drawings["B"])) == 20


def test_one_control_sets_a_dimension_everywhere(rendered, bare):
    before = bytes(bare.drawings["A"].value), bytes(bare.placing.value), bare.table.value
    bare.everywhere["kernel"].value = 3
    assert_shows(bare, bare.space.uniform(3, 4, 3))
    after = bytes(bare.drawings["A"].value), bytes(bare.placing.value), bare.table.value
    assert all(a != b for a, b in zip(before, after, strict=True))
    bare.everywhere["expand"].value = 3
    bare.everywhere["depth"].value = 2
    assert_shows(bare, bare.space.smallest)
    assert bare.comparison().loc["MFLOPs", "A"] == "4.05"


def test_controls_set_single_layers_and_stages(bare):
    bare.detail["kernel"][6].value = 7
    bare.detail["expand"][0].value = 6
    bare.detail["depth"][4].value = 2
    middle = bare.space.middle
    kernel = (*middle.kernel[:6], 7, *middle.kernel[7:])
    assert_shows(bare, Arch(kernel, (6, *middle.expand[1:]), (*middle.depth[:4], 2)))


def test_layers_left_out_keep_their_settings(bare):
    bare.detail["kernel"][19].value = 7
    bare.detail["depth"][4].value = 4
    assert bare.arch.kernel[19] == 7
    assert_shows(bare, bare.arch)


def test_random_presets_are_drawn_from_the_seed(bare, tmp_path):
    again = Explorer(settings=Settings(tmp_path))
    for name in ("random", "4", "12", "14"):
        bare.presets[name].click()
        again.preset(name)
        assert_shows(bare, again.arch)
        if name != "random":
            assert abs(bare.space.macs(bare.arch) / 1e6 - int(name)) <= 0.5
    assert set(bare.presets) == {"smallest", "middle", "largest", "random", "4", "6", "8", "10", "12", "14"}


def test_setting_the_subnet_moves_the_controls(bare, mobilenet):
    arch = mobilenet.uniform(7, 3, 2)
    bare.arch = arch
    assert_shows(bare, arch)
    with pytest.raises(InputError) as error:
        bare.arch = replace(arch, kernel=(9,) * 20)
    assert "kernel is (9, 9" in sentence(error)
    assert_shows(bare, arch)


def test_sizes_at_another_resolution_are_that_resolutions(tmp_path):
    explorer = Explorer(settings=Settings(tmp_path), resolution=64)
    space = SearchSpace("mobilenet_v3", resolution=64)
    assert explorer.comparison().loc["MFLOPs", "A"] == f"{space.macs(space.middle) / 1e6:.2f}" and not explorer.runs
    low, *_, high = get_buckets(space)
    explorer.presets[f"{low:g}"].click()
    assert abs(space.macs(explorer.arch) / 1e6 - low) <= half_bucket(space)
    assert explorer.place().axes[0].get_xlim()[1] > space.macs(space.largest) / 1e6
    assert "3×64×64" in explorer.table.value


def test_clicks_on_several_threads_take_turns(bare, monkeypatch):
    """JupyterLab may deliver clicks on several threads."""
    inside, most = [], []

    def draw(space, arch, size):
        inside.append(arch)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(arch)
        return draw_subnet(space, arch, size)

    monkeypatch.setattr(module, "draw_subnet", draw)
    clicks = [bare.presets[name].click for name in ("smallest", "largest", "random")] * 2
    clicks += [lambda: bare.everywhere["kernel"].set_trait("value", 7), bare.evaluate]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(click) for click in clicks]:
            done.result()
    assert len(most) >= 6 and max(most) == 1
    assert_shows(bare, bare.arch)


def test_proxylessnas_has_a_layer_that_is_always_used(tmp_path):
    explorer = Explorer(settings=Settings(tmp_path), backbone="proxylessnas")
    explorer.presets["smallest"].click()
    assert_shows(explorer, explorer.space.smallest)
    assert explorer.comparison().loc["MFLOPs", "A"] == "3.25"
    assert not explorer.detail["kernel"][20].disabled and len(explorer.detail["depth"]) == 5
    assert "ProxylessNAS" in text(explorer.status)


# --- measuring and comparing


def test_the_other_subnet_stays_while_one_is_edited(bare):
    a = bare.arch
    bare.edited.value = "B"
    assert_shows(bare, bare.space.largest)
    bare.presets["smallest"].click()
    assert_shows(bare, bare.space.smallest)
    assert bare.button.description == "Evaluate B"
    bare.edited.value = "A"
    assert_shows(bare, a)


def test_comparison_of_two_subnets(bare, mobilenet):
    bare.arch = mobilenet.smallest
    table = bare.comparison()
    assert table.loc["MFLOPs"].tolist() == ["4.05", "15.31", "+11.26"]
    assert table.loc["accuracy (%)"].tolist() == ["–", "–", "–"]
    assert table.loc["larger than (% of draws)"].tolist() == ["0.00", "100.00", "+100.00"]
    assert table.loc["stage 1"].tolist() == ["3/3 3/3", "7/6 7/6 7/6 7/6", "4 differ"]
    bare.arch = replace(mobilenet.largest, kernel=(3, *mobilenet.largest.kernel[1:]))
    table = bare.comparison()
    assert table.loc["stage 1"].tolist() == ["3/6 7/6 7/6 7/6", "7/6 7/6 7/6 7/6", "1 differ"]
    assert set(table["B - A"].iloc[5:]) == {"0 differ"}


def test_place_among_uniform_draws(bare):
    size = bare.space.macs(bare.arch) / 1e6
    share = 100 * sum(other < size for other in bare.sizes) / len(bare.sizes)
    assert bare.comparison().loc["larger than (% of draws)", "A"] == f"{share:.2f}"
    figure = bare.place()
    lines = {line.get_gid(): line.get_xdata()[0] for line in figure.axes[0].lines}
    assert lines == {"marker A": size, "marker B": bare.space.macs(bare.space.largest) / 1e6}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["A", "B"]
    assert len(figure.axes) == 1


# --- evaluating


def test_status_says_that_there_are_no_runs(bare):
    assert "no finished run of MobileNetV3 at profile smoke" in text(bare.status)
    assert bare.button.disabled and bare.run.value is None
    assert bare.evaluate() is None and bare.evaluated == {}


def test_evaluation_is_that_of_the_population(trained):
    explorer = Explorer(settings=Settings(trained))
    population = pd.read_csv(run_folder(trained) / "population.csv")
    subnets = [arch for _, arch in sample_population(explorer.space, 1, seed=POPULATION_SEED)]
    for i in (0, 3):
        explorer.arch = subnets[i]
        explorer.button.click()
        assert explorer.evaluated["A"] == population["accuracy"][i]
        assert f"A: {population['accuracy'][i]:.2f} % of 60 test images correct" in text(explorer.status)
        assert explorer.comparison().loc["accuracy (%)", "A"] == f"{population['accuracy'][i]:.2f}"


def test_an_evaluated_subnet_is_a_star_in_the_population(rendered, trained):
    explorer = Explorer(settings=Settings(trained))
    assert explorer.run.options[0][0] == "Digits, RSS-Short, seed 0"
    assert drawn(explorer.placing) == {"population", "marker A", "marker B"}
    accuracy = explorer.evaluate()
    assert drawn(explorer.placing) == {"population", "marker A", "marker B", "star A"}
    (star,) = (line for line in explorer.place().axes[1].lines if line.get_gid() == "star A")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (pytest.approx(7.198784), accuracy)
    explorer.presets["random"].click()
    assert "star A" not in drawn(explorer.placing) and "correct" not in text(explorer.status)
    explorer.presets["middle"].click()
    assert "star A" in drawn(explorer.placing)


def test_without_weights_the_population_is_shown(results):
    (run_folder(results) / "weights.safetensors").unlink()
    explorer = Explorer(settings=Settings(results))
    assert "population" in drawn(explorer.placing)
    assert explorer.button.disabled and explorer.evaluate() is None
    assert "weights of this run are not here" in text(explorer.status)


def test_status_says_that_weights_have_vanished(results):
    explorer = Explorer(settings=Settings(results))
    (run_folder(results) / "weights.safetensors").unlink()
    assert explorer.evaluate() is None
    assert "A was not evaluated" in text(explorer.status) and "weights.safetensors" in text(explorer.status)


def test_status_refuses_another_dataset_than_the_runs(results):
    record = read_record(run_folder(results))
    record["config"]["training"]["dataset_sha256"] = "another"
    write_record(run_folder(results), record)
    explorer = Explorer(settings=Settings(results))
    assert explorer.evaluate() is None
    assert "digits here is another than the one" in text(explorer.status)


def test_choosing_another_run_shows_its_population(results):
    folder = run_folder(results)
    other = shutil.copytree(folder, folder.parent / "seed7")
    record = read_record(other)
    record["config"]["training"]["seed"] = 7
    write_record(other, record)
    (other / "weights.safetensors").unlink()
    explorer = Explorer(settings=Settings(results))
    explorer.evaluate()
    first, second = (run for _, run in explorer.run.options)
    explorer.run.value = second
    assert explorer.button.disabled and explorer.evaluated == {} and "star A" not in drawn(explorer.placing)
    explorer.run.value = first
    assert not explorer.button.disabled and "star A" in drawn(explorer.placing)
