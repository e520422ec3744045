"""Samplers in records: a changed one is noticed, an unchanged one is the same, also in another process."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsslib.samplers import Alternating, Successive, Uniform
from rsstudy.catalogue import Alone, Repeated
from rsstudy.samplers import Sandwich
from rsstudy.store import sampler_identity

MINE = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Mine:
    size: str = "smallest"
    def subnets(self, space, rng, epoch, epochs, steps):
        # a comment
        return [(getattr(space, self.size),)]
"""


def made(tmp_path, source, name="Mine", **fields):
    """A sampler of a module with this source."""
    path = tmp_path / f"module_{len(list(tmp_path.iterdir()))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)(**fields)


def test_own_samplers_have_the_forms_that_stored_runs_have():
    assert sampler_identity(Successive(("largest",))) == "Sequence(sizes=('largest',))"
    assert sampler_identity(Uniform()) == "Uniform(per='epoch', count=1, kernels=None, expands=None, depths=None)"
    assert sampler_identity(Uniform(per="batch", every=10)).endswith("depths=None, every=10)")
    assert sampler_identity(Alternating()) == "Alternating(sizes=('smallest', 'largest'))"
    assert sampler_identity(Sandwich()) == "Sandwich(drawn=2)"
    assert sampler_identity(Alone(8.0, 3)) == "Alone(bucket=8.0, number=3)"
    uniform = sampler_identity(Uniform(per="batch"))
    assert sampler_identity(Repeated(Uniform(per="batch"), 2)) == f"Repeated(sampler={uniform}, times=2)"


def test_the_same_source_and_fields_are_the_same_sampler(tmp_path):
    first, second = made(tmp_path, MINE), made(tmp_path, "# moved down\n\n" + MINE)
    assert sampler_identity(first) == sampler_identity(second)
    assert sampler_identity(first).startswith("Mine, settings and code ")


DERIVED = MINE + "\nclass Derived(Mine):\n    kind = 1\n"


@pytest.mark.parametrize("name", ["Mine", "Derived"])
@pytest.mark.parametrize(
    "old, new", [("getattr(space, self.size)", "space.largest"), ('"smallest"', '"largest"'), ("size", "extent")]
)
def test_another_source_or_field_also_of_a_base_is_another_sampler(old, new, name, tmp_path):
    assert sampler_identity(made(tmp_path, DERIVED, name)) != sampler_identity(
        made(tmp_path, DERIVED.replace(old, new), name)
    )


def test_attributes_of_the_class_count(tmp_path):
    first, second = (made(tmp_path, DERIVED.replace("kind = 1", f"kind = {kind}"), "Derived") for kind in (1, 2))
    assert sampler_identity(first) != sampler_identity(second)


def test_class_without_a_printed_form_is_identified_by_its_source():
    class Plain:
        def subnets(self, space, rng, epoch, epochs, steps):
            return [(space.largest,)]

    Plain.__module__ = "rsstudy.samplers"  # as if it had been added there
    assert sampler_identity(Plain()) == sampler_identity(Plain())
    assert "object at" not in sampler_identity(Plain())


def test_another_process_finds_the_same_identity(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    code = "from mine import Mine; from rsstudy.store import sampler_identity as f; print(f(Mine(size='middle')))"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == sampler_identity(made(tmp_path, MINE, size="middle"))


def test_what_is_no_plain_value_asks_for_a_version():
    @dataclass
    class Mine:
        table: np.ndarray

        def subnets(self, space, rng, epoch, epochs, steps):
            return [(space.largest,)]

    with pytest.raises(InputError, match="the sampler Mine holds a ndarray") as error:
        sampler_identity(Mine(np.arange(3)))
    assert "give it an attribute `version`" in sentence(error)
    one, two = Mine(np.arange(3)), Mine(np.arange(3))
    one.version, two.version = 1, 2
    assert sampler_identity(one) == sampler_identity(one) != sampler_identity(two)


def test_source_that_cannot_be_found_asks_for_a_version():
    namespace = {}
    exec(compile(MINE, "<nowhere>", "exec"), namespace | {"__name__": "nowhere"}, namespace)
    sampler = namespace["Mine"]()
    with pytest.raises(InputError, match="the source of Mine cannot be found") as error:
        sampler_identity(sampler)
    assert "give it an attribute `version`" in sentence(error)
    namespace["Mine"].version = 1
    assert sampler_identity(sampler)
