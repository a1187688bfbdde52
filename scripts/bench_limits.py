# SPDX-License-Identifier: MIT
"""What the machine allows: a step's matrix products as plain CBLAS calls, and the
optimizer's bytes at the speed of a copy."""
import ctypes
import threading
import time

import numpy

import torch_model

LIBRARIES = ("libopenblas.so.0", "libblis.so.4", "libblis.so")
ROW_MAJOR, NO_TRANS, TRANS = 101, 111, 112
ROUNDS = 3                   # the fastest of these counts
POOL_FLOATS = 1 << 25        # 128 MiB: more than a cache holds
COPY_BYTES = 1 << 28         # far beyond every cache
# AdamW reads weight, gradient and both moments, writes weight and moments; the
# norm reads the gradient once more.
OPTIM_FLOATS = 8


def linear(rows, out, inner, dx=True):
    """Forward, dx and dw of y = x w^T as (m, n, k, trans a, trans b)."""
    products = [(rows, out, inner, False, True), (out, inner, rows, True, False)]
    return products + ([(rows, inner, out, False, False)] if dx else [])


def attention(b, t, heads, width, values):
    """Scores, outputs and their four gradients, every sequence and head apart."""
    one = [(t, t, width, False, True), (t, values, t, False, False),     # s = q k^T, o = p v
           (t, t, values, False, True), (t, values, t, True, False),     # dp, dv
           (t, width, t, False, False), (t, width, t, True, False)]      # dq, dk
    return one * (b * heads)


def ra_mla(cfg, b, t, c, heads):
    latent, d, rows = cfg.i("RA_MLA_LATENT_DIM"), c // heads, b * t
    return (linear(rows, c, c) * 2 + linear(rows, latent, c) * 2 +
            (linear(rows, latent, d) + linear(rows, d, latent)) * heads +
            attention(b, t, heads, latent, latent))


def cross(cfg, rows, c, f, gate, folded):
    """Mechanism 2's own products in the form that the binary executes."""
    if not folded:
        return linear(rows, f, f)
    out = c + gate
    return (linear(rows, out, f) + [(out, f, f, False, False), (f, f, out, True, False),
                                    (out, f, f, False, True)])


def recip(cfg, rows, c, heads, read, folded):
    f, products = 4 * c, []
    latent, gate = cfg.i("RA_MLA_LATENT_DIM"), cfg.i("RA_MLA_MLP_GATE_DIM") if read else 0
    if gate:
        products += linear(rows, gate, f) + linear(rows, heads, gate)
    if cfg.y("RA_MLA_MLP_CROSS_TOKEN"):
        products += cross(cfg, rows, c, f, gate, folded)
    if cfg.y("RA_MLA_MLP_LATENT_RECIP"):
        mode, n = cfg.s("RA_MLA_MLP_TYING_MODE"), cfg.i("RA_MLA_MLP_LATENT_DIM")
        dx = not cfg.y("RA_MLA_MLP_LATENT_DETACH")
        if mode != "per_head_scalar":
            products += linear(rows, f, latent, dx)
        if mode == "untied" and read:
            products += linear(rows, n, f) + linear(rows, latent, n)
        if mode == "tied_transpose" and read:
            products += linear(rows, latent, f)
    return products


def step_products(cfg, folded):
    """Every matrix product of one micro-batch, forward and backward."""
    b, t, c, heads = (cfg.i(s) for s in ("BATCH_SIZE", "BLOCK_SIZE", "N_EMBD", "N_HEAD"))
    rows, subs = b * t, torch_model.sublayers(cfg)
    products = linear(rows, torch_model.padded_vocab(cfg), c)
    for at, (word, _, _) in enumerate(subs):
        if word == "mha":
            products += (linear(rows, 3 * c, c) + linear(rows, c, c) +
                         attention(b, t, heads, c // heads, c // heads))
        elif word == "ra_mla":
            products += ra_mla(cfg, b, t, c, heads)
        else:
            products += linear(rows, 4 * c, c) + linear(rows, c, 4 * c)
            if word == "recip":
                products += recip(cfg, rows, c, heads, torch_model.is_read(subs, at), folded)
    return products


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
    m, n, k, ta, tb = product
    integer, real, a, b, c = ctypes.c_int, ctypes.c_float, *buffers
    args = (integer(ROW_MAJOR), integer(TRANS if ta else NO_TRANS),
            integer(TRANS if tb else NO_TRANS), integer(m), integer(n), integer(k), real(1),
            a, integer(m if ta else k), b, integer(k if tb else n), real(0), c, integer(n))
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
    largest = max(max(m * k, k * n, m * n) for m, n, k, _, _ in products)
    pool = numpy.full(3 * largest + POOL_FLOATS, 0.5, dtype=numpy.float32)
    base, used, calls = pool.ctypes.data, 0, []
    for product in products:
        m, n, k = product[:3]
        sizes, buffers = (m * k, k * n, m * n), []
        if used + sum(sizes) > len(pool):
            used = 0
        for size in sizes:
            buffers.append(ctypes.c_void_p(base + 4 * used))
            used += size
        calls.append(bind(sgemm, product, buffers))
    return pool, calls


def blas_seconds(cfg, folded, threads):
    """(library, seconds, operations) of a step's products, micro-batches included.

    The faster of the library's own threads and one thread's time divided by their
    number: small products gain nothing from threads inside them, but run side by
    side. What a foreign call from Python costs, measured on empty products, is
    taken off.
    """
    name, sgemm, set_threads = load_blas()
    products = step_products(cfg, folded)
    pool, calls = bind_all(sgemm, products)
    empty = bind(sgemm, (0, 0, 0, False, False), [pool.ctypes.data_as(ctypes.c_void_p)] * 3)
    overhead = timed([empty] * len(calls))
    seconds = float("inf")
    for inside in (1, threads):
        set_threads(ctypes.c_int(inside))
        seconds = min(seconds, (timed(calls) - overhead) * inside / threads)
    work = sum(2.0 * m * n * k for m, n, k, _, _ in products)
    micro = cfg.i("GRADIENT_ACCUMULATION")
    return name, seconds * micro, work * micro


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
