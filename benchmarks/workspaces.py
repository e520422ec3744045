"""What cuBLAS's workspaces take, and whether a graph survives the reset of another one of its stream."""

from concurrent.futures import ThreadPoolExecutor

import torch
from common import CUDA, DEVICE, options, report, say, simulated_where_needed, used_memory

from rsslib.device import CAPTURING, own_stream


def product() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Factors and place of a product that is long and narrow, for which cuBLAS uses its workspace."""
    a, b = torch.randn(64, 8192, device=DEVICE), torch.randn(8192, 64, device=DEVICE)
    return a, b, torch.empty(64, 64, device=DEVICE)


def captured(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with CAPTURING:
        graph.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
        try:
            torch.mm(a, b, out=out)
        finally:
            graph.capture_end()
    return graph


def after_a_reset() -> dict:
    """Whether a graph computes the same after an older one of its stream was reset and free memory was filled."""
    with own_stream(DEVICE):
        first, second = product(), product()
        torch.mm(first[0], first[1], out=first[2])
        graphs = [captured(*first), captured(*second)]
        graphs[1].replay()
        expected = second[2].clone()
        with CAPTURING:
            graphs[0].reset()
        sizes = [2**n for n in (16, 20, 23)] * (32 if CUDA else 1)
        blocks = [torch.full((size,), float("nan"), device=DEVICE) for size in sizes]
        graphs[1].replay()
        row = {"the same after a reset": torch.equal(second[2], expected), "finite": bool(second[2].isfinite().all())}
        del blocks
        with CAPTURING:
            graphs[1].reset()
    return row


def by_threads_and_streams(number: int) -> list[dict]:
    """MB in use after `number` threads multiplied matrices, each in its own stream, then each in all streams."""
    streams, rows = [torch.cuda.Stream(DEVICE) for _ in range(number)], []

    def multiply(i: int, chosen: list) -> None:
        for stream in chosen:
            with torch.cuda.stream(stream):
                a, b, out = product()
                torch.mm(a, b, out=out)
                stream.synchronize()

    with ThreadPoolExecutor(number) as pool:
        for what, each in (("a stream each", lambda i: streams[i : i + 1]), ("in all streams", lambda i: streams)):
            before = used_memory()
            list(pool.map(lambda i, each=each: multiply(i, each(i)), range(number)))
            rows.append(say({"threads": number, "streams": what, "MB more": used_memory() - before}))
    return rows


def main() -> None:
    chosen = options(__doc__, threads=8 if CUDA else 2)
    with simulated_where_needed():
        report(__doc__, by_threads_and_streams(chosen.threads))
        report("A graph after another of its stream was reset", [after_a_reset()])


if __name__ == "__main__":
    main()
