# SPDX-License-Identifier: MIT
"""What the machine allows: a step's matrix products as plain CBLAS calls, and the
optimizer's bytes at the speed of a copy."""
import ctypes
import threading
import time

import numpy

LIBRARIES = ("libopenblas.so.0", "libblis.so.4", "libblis.so")
ROW_MAJOR, NO_TRANS = 101, 111
ROUNDS = 3                   # the fastest of these counts
POOL_FLOATS = 1 << 25        # 128 MiB: more than a cache holds
COPY_BYTES = 1 << 28         # far beyond every cache
# AdamW reads weight, gradient and both moments, writes weight and moments; the
# norm reads the gradient once more.
OPTIM_FLOATS = 8


def step_products(plan):
    """Every matrix product of one micro-batch, forward and backward: [(m, n, k)]."""
    return [(m, n, k) for part in [plan["stack"], *plan["sublayers"]]
            for way in ("forward", "backward")
            for m, n, k, count in part[way]["products"] for _ in range(count)]


def step_flops(plan):
    """Operations of one micro-batch: the products, and what attention and gathers do."""
    return sum(part[way]["flops"] for part in [plan["stack"], *plan["sublayers"]]
               for way in ("forward", "backward"))


def load_blas():
    """(name, cblas_sgemm, function that sets its threads)."""
    for name in LIBRARIES:
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        setter = "openblas_set_num_threads" if "openblas" in name else "bli_thread_set_num_threads"
        return name, lib.cblas_sgemm, getattr(lib, setter)
    raise OSError("no CBLAS library found; install the package libopenblas0")


def bind(sgemm, product, buffers):
    """A call without arguments: a[m][k] b[k][n] into c, each operand from its own buffer."""
    m, n, k = product
    integer, real, a, b, c = ctypes.c_int, ctypes.c_float, *buffers
    args = (integer(ROW_MAJOR), integer(NO_TRANS), integer(NO_TRANS), integer(m), integer(n),
            integer(k), real(1), a, integer(k), b, integer(n), real(0), c, integer(n))
    return lambda: sgemm(*args)


def timed(calls):
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for call in calls:
            call()
        best = min(best, time.perf_counter() - began)
    return best


def bind_all(sgemm, products):
    """Calls whose buffers are walked through, so that weights come from memory as in a step."""
    largest = max(max(m * k, k * n, m * n) for m, n, k in products)
    pool = numpy.full(3 * largest + POOL_FLOATS, 0.5, dtype=numpy.float32)
    base, used, calls = pool.ctypes.data, 0, []
    for product in products:
        m, n, k = product
        sizes, buffers = (m * k, k * n, m * n), []
        if used + sum(sizes) > len(pool):
            used = 0
        for size in sizes:
            buffers.append(ctypes.c_void_p(base + 4 * used))
            used += size
        calls.append(bind(sgemm, product, buffers))
    return pool, calls


def blas_seconds(plan, threads):
    """(library, seconds, operations) of the matrix products of one micro-batch.

    The faster of the library's own threads and one thread's time divided by their
    number: small products gain nothing from threads inside them, but run side by
    side. What a foreign call from Python costs, measured on empty products, is
    taken off.
    """
    name, sgemm, set_threads = load_blas()
    products = step_products(plan)
    pool, calls = bind_all(sgemm, products)
    empty = bind(sgemm, (0, 0, 0), [pool.ctypes.data_as(ctypes.c_void_p)] * 3)
    overhead = timed([empty] * len(calls))
    seconds = float("inf")
    for inside in (1, threads):
        set_threads(ctypes.c_int(inside))
        seconds = min(seconds, (timed(calls) - overhead) * inside / threads)
    return name, seconds, sum(2.0 * m * n * k for m, n, k in products)


def copy_speed(threads):
    """Bytes read and written per second by a copy with all threads."""
    parts = [(numpy.ones(COPY_BYTES // threads, numpy.uint8),
              numpy.ones(COPY_BYTES // threads, numpy.uint8)) for _ in range(threads)]

    def copy():
        workers = [threading.Thread(target=numpy.copyto, args=part) for part in parts]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    return 2 * COPY_BYTES / timed([copy])


def optimizer_seconds(elements, threads):
    return 4 * OPTIM_FLOATS * elements / copy_speed(threads)
