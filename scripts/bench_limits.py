# SPDX-License-Identifier: MIT
"""What the machine allows: a step's matrix products as plain calls of the fastest library
here, and the optimizer's bytes at the speed of a copy."""
import ctypes
import threading
import time

# library: (product, function that sets its threads)
LIBRARIES = {
    "libdnnl.so.2": ("dnnl_sgemm", "omp_set_num_threads"),
    "libdnnl.so.3": ("dnnl_sgemm", "omp_set_num_threads"),
    "libopenblas.so.0": ("cblas_sgemm", "openblas_set_num_threads"),
    "libblis.so.4": ("cblas_sgemm", "bli_thread_set_num_threads"),
}
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


def load_libraries():
    """(name, product, function that sets its threads) of each library that is here."""
    for name, (product, setter) in LIBRARIES.items():
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        yield name, getattr(lib, product), getattr(lib, setter)


def bind(sgemm, product, buffers):
    """A call without arguments: a[m][k] b[k][n] into c, each operand from its own buffer."""
    m, n, k = product
    size = ctypes.c_long if sgemm.__name__ == "dnnl_sgemm" else ctypes.c_int
    real, a, b, c = ctypes.c_float, *buffers
    shape = size(m), size(n), size(k)
    rest = real(1), a, size(k), b, size(n), real(0), c, size(n)
    if sgemm.__name__ == "dnnl_sgemm":
        args = (ctypes.c_char(b"N"), ctypes.c_char(b"N"), *shape, *rest)
    else:
        args = (ctypes.c_int(ROW_MAJOR), ctypes.c_int(NO_TRANS), ctypes.c_int(NO_TRANS), *shape,
                *rest)
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
    pool = (ctypes.c_float * (3 * largest + POOL_FLOATS))()
    ctypes.memset(pool, 0x3f, ctypes.sizeof(pool))           # each is 0.75
    base, used, calls = ctypes.addressof(pool), 0, []
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

    The fastest library, and the faster of its own threads and one thread's time divided
    by their number: small products gain nothing from threads inside them, but run side by
    side. What a foreign call from Python costs, measured on empty products, is taken off.
    """
    products, best = step_products(plan), (None, float("inf"))
    for name, sgemm, set_threads in load_libraries():
        pool, calls = bind_all(sgemm, products)
        empty = bind(sgemm, (0, 1, 1), [ctypes.byref(pool)] * 3)
        overhead = timed([empty] * len(calls))
        for inside in (1, threads):
            set_threads(ctypes.c_int(inside))
            seconds = (timed(calls) - overhead) * inside / threads
            best = min(best, (name, seconds), key=lambda x: x[1])
    if not best[0]:
        raise OSError("no library of matrix products found; run: make setup")
    return *best, sum(2.0 * m * n * k for m, n, k in products)


def filled(n):
    """n bytes that are really there."""
    buffer = ctypes.create_string_buffer(n)
    ctypes.memset(buffer, 1, n)
    return buffer


def copy_speed(threads):
    """Bytes read and written per second by a copy with all threads."""
    n = COPY_BYTES // threads
    parts = [(filled(n), filled(n), n) for _ in range(threads)]

    def copy():
        workers = [threading.Thread(target=ctypes.memmove, args=part) for part in parts]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    return 2 * n * threads / timed([copy])


def optimizer_seconds(elements, threads):
    return 4 * OPTIM_FLOATS * elements / copy_speed(threads)
