"""rsslib.deploy.footprint: sizes by table are those of exported files and of their graphs."""

import numpy as np
import onnx
import pytest
from helpers import TINY, random_archs, random_supernet, toy_data

from rsslib.deploy.exporting import deployable
from rsslib.deploy.footprint import file_bytes, memory_bytes
from rsslib.deploy.latency import bytes_of
from rsslib.space import SearchSpace


def most_alive(model) -> int:
    """Bytes of the tensors that an operator of the graph needs or that later ones do, at most, for one image."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    bytes_of_tensor = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = [dimension.dim_value for dimension in kind.shape.dim][1:]
        item = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        bytes_of_tensor[value.name] = int(np.prod(shape)) * item
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive, most = {value.name for value in graph.input}, 0
    for i, node in enumerate(graph.node):
        alive.update(node.output)
        most = max(most, sum(bytes_of_tensor[name] for name in alive))
        alive = {name for name in alive if last.get(name, -1) > i}
    return most


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(classes=4),
        SearchSpace("proxylessnas", in_channels=1, classes=4),
        SearchSpace(TINY, kernels=(3, 9), expands=(1, 6), depths=(1, 2), classes=4),
    ],
    ids=lambda space: space.name,
)
def test_file_and_memory_are_those_of_the_exported_graph(space):
    data, supernet = toy_data(64, 8, space.in_channels), random_supernet(space).eval()
    archs = [space.smallest, *random_archs(space, 3), space.largest]
    rows = space.to_rows(archs)
    for arch, size, memory in zip(archs, file_bytes(space, rows), memory_bytes(space, rows), strict=True):
        content = bytes_of(deployable(supernet, arch, data))
        assert size == pytest.approx(len(content), rel=0.005 if space.backbone != TINY else 0.1)
        assert memory == most_alive(onnx.load_from_string(content))
