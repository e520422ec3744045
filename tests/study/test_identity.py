"""rsstudy.store: a changed sampler is noticed, an unchanged one is the same, also in another process."""

import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import sentence

from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.samplers import Alternating, Successive, Uniform
from rsstudy.catalogue import METHODS, Repeated, build
from rsstudy.plan import plan
from rsstudy.store import configuration, sampler_identity

MODULE = """
import functools
import numpy as np
from dataclasses import dataclass

RATE = 1
def helper(x): return x + 1

class Base:
    share = 0.5

class Mine(Base):
    sizes = (1, 2)
    table = np.arange(5000)
    def __init__(self, n=3): self.n = n
    @classmethod
    def make(cls): return 1
    @staticmethod
    def twice(x): return 2 * x
    @property
    def depth(self): return 2
    def pick(self, k=4): return k
    def subnets(self, space, rng, epoch, epochs, steps):
        return [(space.smallest,)] * (RATE + helper(self.twice(self.depth)))

def closing(bound):
    class Closed(Mine):
        def subnets(self, space, rng, epoch, epochs, steps): return [(space.smallest,)] * bound
    return Closed()
"""


def module(*replaced):
    source = MODULE
    for old, new in replaced:
        assert old in source
        source = source.replace(old, new)
    names = {"__name__": "a_notebook"}
    exec(compile(source, "cell", "exec"), names)
    return names


def identity(*replaced, make=lambda m: m["Mine"]()):
    return sampler_identity(make(module(*replaced)))


@pytest.mark.parametrize(
    "change",
    [
        ("sizes = (1, 2)", "sizes = (1, 3)"),
        ("share = 0.5", "share = 0.6"),
        ("def make(cls): return 1", "def make(cls): return 2"),
        ("def twice(x): return 2 * x", "def twice(x): return 3 * x"),
        ("def depth(self): return 2", "def depth(self): return 3"),
        ("def pick(self, k=4)", "def pick(self, k=5)"),
        ("RATE = 1", "RATE = 2"),
        ("def helper(x): return x + 1", "def helper(x): return x + 2"),
        ("np.arange(5000)", "np.where(np.arange(5000) == 2500, 0, np.arange(5000))"),
        ("n=3", "n=4"),
        ("return [(space.smallest,)] * (RATE", "return [(space.largest,)] * (RATE"),
    ],
    ids=lambda change: change[0],
)
def test_a_change_is_noticed(change):
    assert identity(change) != identity() == identity()


def test_what_does_not_decide_the_draws_is_none():
    assert identity(("RATE = 1", "# a remark\nRATE = 1\nOTHER = 5")) == identity()
    assert identity(("def pick", "\n    def pick")) == identity()


def test_a_closure_and_attributes_count():
    assert identity(make=lambda m: m["closing"](1)) != identity(make=lambda m: m["closing"](2))
    assert identity(make=lambda m: m["Mine"](7)) != identity(make=lambda m: m["Mine"](8))


TOOLS = """
RATE = 1
UNUSED = 1
def pick(x): return helper(x) * RATE
def helper(x): return x + 1
"""
USES_TOOLS = """
class Mine:
    def subnets(self, space, rng, epoch, epochs, steps): return [(space.smallest,)] * sum(tools.TAKEN for _ in "1")

def closing(tools):
    class Closed:
        def subnets(self, space, rng, epoch, epochs, steps): return [(space.smallest,)] * tools.TAKEN
    return Closed()
"""


def made_module(name, source, **names):
    module = ModuleType(name)
    vars(module).update(names)
    exec(compile(source, name, "exec"), vars(module))
    return module


@pytest.mark.parametrize("taken", ["pick(2)", "RATE", "inner.pick(2)"])
@pytest.mark.parametrize("closed", [False, True])
def test_what_is_taken_from_a_module_of_ones_own_counts(taken, closed):
    def identity_with(old="", new=""):
        tools = made_module("mytools", TOOLS.replace(old, new))
        tools.inner = made_module("mytools.inner", TOOLS.replace(old, new), outer=tools, __file__="/somewhere")
        mine = made_module("a_notebook", USES_TOOLS.replace("TAKEN", taken), tools=tools)
        return sampler_identity(mine.closing(tools) if closed else mine.Mine())

    assert identity_with() == identity_with("UNUSED = 1", "UNUSED = 2") != identity_with("\nRATE = 1", "\nRATE = 2")
    if "pick" in taken:
        assert identity_with() != identity_with("x + 1", "x + 2")


class Holder:
    def __init__(self, held):
        self.held = held

    def subnets(self, space, rng, epoch, epochs, steps):
        return [(space.smallest,)]


class Helper:
    def __init__(self, n):
        self.n = n


class Slotted:
    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n


PAIRS = {
    "a lambda": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "a helper object": (lambda: Helper(1), lambda: Helper(2)),
    "one with slots": (lambda: Slotted(1), lambda: Slotted(2)),
    "a set": (lambda: {"a", "b", "c"}, lambda: {"a", "b", "d"}),
    "a nested list": (lambda: [[1], {"k": (2.0, None)}], lambda: [[1], {"k": (2.5, None)}]),
    "a long array": (lambda: np.arange(9999), lambda: np.arange(9999)[::-1]),
    "a tensor": (lambda: torch.arange(5), lambda: torch.arange(6)),
    "a generator of numbers": (lambda: np.random.default_rng(1), lambda: np.random.default_rng(2)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_what_a_sampler_holds_counts_by_its_content(pair):
    one, other = pair
    assert sampler_identity(Holder(one())) == sampler_identity(Holder(one())) != sampler_identity(Holder(other()))
    assert " at 0x" not in sampler_identity(Holder(one()))


def test_one_that_holds_itself_is_told():
    sampler = Holder(None)
    sampler.held = [sampler]
    assert sampler_identity(sampler)


@pytest.mark.parametrize(
    "made",
    [lambda: open(__file__), threading.Lock, lambda: (n for n in [1])],
    ids=["a file", "a lock", "a generator"],
)
def test_what_cannot_be_told_is_refused_in_a_sentence(made):
    held = made()
    try:
        with pytest.raises(InputError, match="the sampler Holder holds a .* whose content cannot be told") as error:
            sampler_identity(Holder(held))
        assert "__getstate__" in sentence(error)
    finally:
        getattr(held, "close", lambda: None)()


def test_a_state_of_ones_own_replaces_the_attributes():
    class Open(Holder):
        def __getstate__(self):
            return "settings"

    assert sampler_identity(Open(threading.Lock())) == sampler_identity(Open(threading.Lock()))


def test_the_packages_own_are_known_by_their_settings():
    for sampler in (Uniform(), Successive(("largest",)), Alternating()):
        assert sampler_identity(sampler) == repr(sampler)
    assert repr(Successive(("largest", "smallest"))) == "Sequence(sizes=('largest', 'smallest'))"
    for name in METHODS:
        for stage in build(name, 9, 5).stages:
            assert "digest" not in sampler_identity(stage.sampler) and sampler_identity(stage.sampler)[0].isupper()


def test_a_sampler_repeated_is_known_as_it_is_alone():
    assert sampler_identity(Repeated(Uniform(), 2)) == repr(Repeated(Uniform(), 2))
    one, same, other = (sampler_identity(Repeated(Holder(n), 2)) for n in (1, 1, 2))
    assert one == same != other and " at 0x" not in one and sampler_identity(Holder(1)) in one


def test_a_run_whose_sampler_cannot_be_told_is_refused_in_a_sentence(tmp_path):
    (run,) = plan("smoke", methods=[one_stage("mine", 1, Holder(threading.Lock()))])
    with pytest.raises(InputError, match="content cannot be told"):
        configuration(run)


def test_it_is_the_same_in_another_process_with_other_hashes(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    code = "from mine import Mine, closing; from rsstudy.store import sampler_identity as f; "
    code += "print(f(Mine()), f(closing(2)))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONHASHSEED": seed, "PYTHONPATH": root()},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


def root():
    import rsslib

    return str(Path(rsslib.__file__).parents[1])
