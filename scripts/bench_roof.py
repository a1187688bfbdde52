# SPDX-License-Identifier: MIT
"""What a GPU allows, measured through PyTorch: the roofs of `make bench` there.

    bench_roof.py [PLAN...]
    bench_roof.py --copies      for ncu: copies of all sizes, each a kernel

Prints one JSON object: name, copy (bytes a second, read and written), copies [bytes read and
written, seconds] of one among many in a CUDA graph, matmul (operations a second of a large
product), attention {backend: [seconds forward, backward]}, its shape (B, H, T, D), products
[seconds, for each PLAN, of its micro-batch's matrix products].
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench_kernels import COPIES, COPY_ROUNDS
from bench_limits import step_products
from bench_torch import by_events

SIDE = 8192                  # of the large product
COPY_BYTES = 2 << 30
GRAPH_BYTES = 8 << 30                   # all copies of a graph
REPEATS = 20
ATTENTION = (16, 12, 1024, 64)          # B, H, T, D
BACKENDS = {"FlashAttention": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def seconds(work, repeats=REPEATS):
    """Of one call, the median of @repeats behind three more."""
    for _ in range(3):
        work()
    return statistics.median(by_events(work, repeats))


def product_seconds(m, n, k):
    a, b = torch.randn(m, k), torch.randn(k, n)
    a, b = a.bfloat16(), b.bfloat16()
    out = torch.empty(m, n, dtype=torch.bfloat16)
    return seconds(lambda: torch.mm(a, b, out=out))


def copy_speed():
    src = torch.empty(COPY_BYTES, dtype=torch.uint8)
    dst = torch.empty_like(src)
    return 2 * COPY_BYTES / seconds(lambda: dst.copy_(src))


def rotating(copy, src, dst, size):
    """Calls of @copy, of @size bytes read and written: none meets what a cache may still hold."""
    at = 0
    while True:
        end = at + size // 2
        if end > len(src):
            at, end = 0, size // 2
        yield lambda at=at, end=end: copy(src[at:end], dst[at:end])
        at = end


def copies():
    """[bytes read and written, seconds] where launches and the ends of a copy count, too."""
    src = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8)
    dst, found = torch.empty_like(src), []
    for size in COPIES:
        calls = rotating(lambda a, b: b.copy_(a), src, dst, size)
        number, graph = min(GRAPH_BYTES // size, 500), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(number):
                next(calls)()
        found.append([size, seconds(graph.replay, COPY_ROUNDS) / number])
    return found


def copy_kernels():
    """The same one by one, by a kernel that inverts: ncu does not see the library's copy."""
    src = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8)
    dst = torch.empty_like(src)

    def invert(a, b):
        torch.bitwise_not(a.view(torch.int32), out=b.view(torch.int32))

    invert(src, dst)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    for size in COPIES:
        calls = rotating(invert, src, dst, size)
        for _ in range(COPY_ROUNDS):
            next(calls)()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def attention(backend):
    """Seconds of causal attention, forward and backward."""
    q, k, v, dy = (torch.randn(ATTENTION, dtype=torch.bfloat16) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    with sdpa_kernel(backend):
        forward = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        backward = seconds(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True))
    return [forward, backward]


def attentions():
    found = {}
    for name, backend in BACKENDS.items():
        try:
            found[name] = attention(backend)
        except RuntimeError as error:
            print(f"scaled_dot_product_attention with {name}: not here: "
                  f"{str(error).splitlines()[0]}", file=sys.stderr)
    return found


def main():
    torch.set_default_device("cuda")
    if sys.argv[1:] == ["--copies"]:
        return copy_kernels()
    times = {}

    def product(shape):
        if shape not in times:
            times[shape] = product_seconds(*shape)
        return times[shape]

    plans = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as f:
            plans.append(json.load(f))
    print(json.dumps({
        "name": torch.cuda.get_device_name(), "copy": copy_speed(), "copies": copies(),
        "matmul": 2 * SIDE ** 3 / product((SIDE, SIDE, SIDE)), "attention": attentions(), "shape": ATTENTION,
        "products": [sum(map(product, step_products(plan))) for plan in plans]}))


if __name__ == "__main__":
    main()
