"""CUDA graphs on a CPU: a capture records operators with the very tensors they met, a replay runs the record again.

What a real graph does with memory happens here too, so that a mistake shows as an error or as wrong numbers:

- A capture changes nothing: what it wrote to tensors from outside, and its generator, are put back afterwards.
- A replay runs the recorded operators with the recorded numbers, shapes and addresses; Python does not run again.
- Tensors made in a capture belong to the graph: they hold NaN (integers: a large number) before and after a replay.
- Tensors from outside are known by their address alone; if it has been freed, a replay raises `UsedAfterFree`.
- What waits for the host, takes data from it or draws from an unregistered generator raises `CannotCapture`; so does a
  capture without the lock, outside of `own_stream` or into a pool that lost its last graph. Such a capture is invalid:
  its end raises too, and the allocator, still in it, takes no other.

Streams run nothing, and there are no library workspaces. `simulated_graphs` puts this in place of
`torch.cuda.CUDAGraph`.
"""

import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rsslib import device as machine
from rsslib import operators
from rsslib.cuda import graphs
from rsslib.device import CAPTURING

# Reading a number back, shapes that data decide, data from the host.
FORBIDDEN = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh", "equal", "pin_memory"}


class CannotCapture(RuntimeError):
    """CUDA, or PyTorch's allocator, would refuse this."""


class UsedAfterFree(RuntimeError):
    """A replay meets memory from outside the graph that nobody holds any more."""


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class External:
    """A tensor from outside a graph: an address and a layout, which do not keep it alive."""

    def __init__(self, tensor: Tensor):
        self.storage, self.dtype = StorageWeakRef(tensor.untyped_storage()), tensor.dtype
        self.layout = tensor.storage_offset(), tensor.size(), tensor.stride()

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise UsedAfterFree(f"{self.dtype} of shape {tuple(self.layout[1])}")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.layout)


class Recorder(TorchDispatchMode):
    """Records the operators that would launch something while it is entered."""

    def __init__(self, generator: torch.Generator | None = None, warm: set | None = None):
        super().__init__()
        self.generator, self.warm, self.valid = generator, warm, True
        self.recorded: list[tuple] = []
        self.own: dict[int, torch.UntypedStorage] = {}  # made in the capture, by address
        self.own_tensors: list[Tensor] = []
        self.numbers: dict[tuple, int] = {}  # of each tensor from outside in the next
        self.externals: list[External] = []
        self.before: dict[int, tuple] = {}  # storages from outside and what they held before the capture

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        settings = settings or {}
        leaves, spec = tree_flatten((arguments, settings))
        self.valid = False  # unless it turns out well
        self.check(function, leaves, arguments)
        loaded = self.warm is None or kind(function, leaves) in self.warm
        inputs = [t for t in leaves if isinstance(t, Tensor)]
        for tensor in inputs:
            if address(tensor) not in self.own and address(tensor) not in self.before:
                self.before[address(tensor)] = tensor.untyped_storage(), tensor.untyped_storage().clone()
        result = function(*arguments, **settings)
        known = {address(tensor) for tensor in inputs}
        outputs = [t.detach() if isinstance(t, Tensor) else None for t in tree_leaves(result)]
        fresh = [t if t is not None and address(t) not in known else None for t in outputs]
        for tensor in (t for t in fresh if t is not None):
            self.own[address(tensor)] = tensor.untyped_storage()
            self.own_tensors.append(tensor)
        if any(t is not None for t in fresh) or function._schema.is_mutable or not outputs:  # else a view: no kernel
            if not loaded:
                raise CannotCapture(f"a kernel would be loaded in a capture: {kind(function, leaves)}")
            slots = [
                (i, self.number(t))
                for i, t in enumerate(leaves)
                if isinstance(t, Tensor) and address(t) not in self.own
            ]
            leaves = [t.detach() if isinstance(t, Tensor) else t for t in leaves]
            for i, _ in slots:
                leaves[i] = None
            self.recorded.append((function, leaves, spec, slots, fresh))
        self.valid = True
        return result

    def check(self, function, leaves, arguments) -> None:
        name = function.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put_") else ()
        if name in FORBIDDEN or any(i is not None and i.dtype == torch.bool for i in indices):
            raise CannotCapture(str(function))
        if torch.Tag.nondeterministic_seeded in function.tags:
            generators = [g for g in leaves if isinstance(g, torch.Generator)]
            if self.generator is None or [g._cdata for g in generators] != [self.generator._cdata]:
                raise CannotCapture(f"{function} draws from a generator that is not registered")

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor from outside, a new one at its first use."""
        layout = address(tensor), tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype
        number = self.numbers.setdefault(layout, len(self.externals))
        if number == len(self.externals):
            self.externals.append(External(tensor))
        return number

    def put_back(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)
        self.before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        outside = [external.tensor() for external in self.externals]
        for function, recorded, spec, slots, fresh in self.recorded:
            leaves = list(recorded)
            for i, number in slots:
                leaves[i] = outside[number]
            arguments, settings = tree_unflatten(leaves, spec)
            result = function(*arguments, **settings)
            if any(t is not None for t in fresh):
                for made, value in zip(fresh, tree_leaves(result), strict=True):
                    if made is not None:
                        made.copy_(value)
        self.spoil()

    def spoil(self) -> None:
        """What the graph's memory holds between replays is anybody's guess."""
        floats = [t for t in self.own_tensors if t.is_floating_point()]
        if floats:
            torch._foreach_add_(floats, float("nan"))
        for tensor in self.own_tensors:
            if not tensor.is_floating_point():
                tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)

    def operators(self) -> Counter[str]:
        """How many operators of each name a replay launches: most are one kernel, some several, allocations none."""
        names = (function.overloadpacket.__name__ for function, *_ in self.recorded)
        return Counter(name for name in names if name not in ("empty", "empty_like", "empty_strided", "new_empty"))


def kind(function, leaves: list) -> tuple:
    """What decides which kernel runs: operator, types of tensors, and for products and convolutions their shapes."""
    shaped = any(word in function.overloadpacket.__name__ for word in ("mm", "conv"))
    tensors = [t for t in leaves if isinstance(t, Tensor)]
    return str(function), *dict.fromkeys((t.dtype, *(tuple(t.shape) if shaped else ())) for t in tensors)


class EagerKinds(TorchDispatchMode):
    """Keeps the kinds of kernels that ran outside of captures."""

    def __init__(self):
        super().__init__()
        self.kinds: set[tuple] = set()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        self.kinds.add(kind(function, tree_leaves((arguments, settings or {}))))
        return function(*arguments, **(settings or {}))


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def wait_stream(self, other: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


class Event:
    """`torch.cuda.Event`, of which waiting must not take a processor core."""

    def __init__(self, blocking: bool = False):
        assert blocking, "waiting for this event would occupy a core"

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


class Device:
    """The graphs captured while it is simulated, and what is left of them."""

    def __init__(self, eager: EagerKinds | None = None):
        self.eager = eager
        self.default, self.entered = Stream(), threading.local()
        self.captured: list[Recorder] = []
        self.usable = True  # no capture was invalid
        self.alive: Counter = Counter()  # graphs by pool

    def graph(self) -> "SimulatedGraph":
        return SimulatedGraph(self)

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return getattr(self.entered, "stream", self.default)

    @contextmanager
    def stream(self, stream: Stream):
        outside, self.entered.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self.entered.stream = outside


class SimulatedGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, device: Device):
        self.device, self.generator, self.recorder = device, None, None

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generator = generator

    def capture_begin(self, pool, capture_error_mode: str) -> None:
        if not CAPTURING.locked():
            raise CannotCapture("without the lock")
        if self.device.current_stream() is self.device.default:
            raise CannotCapture("CUDA graphs must be captured on a non-default stream")
        assert self.device.usable, "the allocator is still in a capture that failed"
        if pool in self.device.alive and not self.device.alive[pool]:
            raise CannotCapture("into a pool whose last graph is gone")
        self.pool, self.state = pool, None if self.generator is None else self.generator.get_state()
        warm = None if self.device.eager is None else self.device.eager.kinds
        self.recorder = Recorder(self.generator, warm)
        self.recorder.__enter__()

    def capture_end(self) -> None:
        self.recorder.__exit__(None, None, None)
        if self.state is not None:
            self.generator.set_state(self.state)
        self.recorder.put_back()
        if not self.recorder.valid:
            self.recorder, self.device.usable = None, False
            raise CannotCapture("operation failed due to a previous error during capture")
        self.recorder.spoil()
        self.device.captured.append(self.recorder)
        self.device.alive[self.pool] += 1

    def replay(self) -> None:
        self.recorder.replay()

    def reset(self) -> None:
        if not CAPTURING.locked():
            raise CannotCapture("a graph is dropped without the lock")
        if self.recorder is not None:
            self.recorder = None
            self.device.alive[self.pool] -= 1


@contextmanager
def simulated_graphs(lazy_loading: bool = False):
    """Within, graphed training on a CPU captures and replays; gives the `Device`, which knows what was captured.

    `lazy_loading`: as drivers before CUDA 12.3 do it, so that a kernel's first launch must not be in a capture.
    """
    device = Device(EagerKinds() if lazy_loading else None)
    pools = iter(range(1_000_000))
    with (
        mock.patch.object(graphs, "can_capture", lambda device: True),
        mock.patch.object(machine, "can_capture", lambda device: True),
        mock.patch.object(operators, "compiled_loop", lambda: None),  # compiled for a CPU, where no operator is called
        mock.patch("torch.cuda.CUDAGraph", device.graph),
        mock.patch("torch.cuda.graph_pool_handle", lambda: (0, next(pools))),
        mock.patch("torch.cuda.Event", Event),
        mock.patch("torch.cuda.Stream", Stream),
        mock.patch("torch.cuda.stream", device.stream),
        mock.patch("torch.cuda.current_stream", device.current_stream),
        mock.patch("torch.cuda.default_stream", lambda where: device.default),
    ):
        try:
            with device.eager or nullcontext():
                yield device
        finally:
            machine.capture_failed.clear()  # the next device is another
