# SPDX-License-Identifier: MIT
"""One side of `make bench`: a configuration in PyTorch, in one of its ways.

    bench_torch.py WAY DEVICE CONFIG PLAN STEPS WARMUP THREADS [BATCH LENGTH]

WAY: eager; compiled (torch.compile); bf16 (compiled, bf16 autocast; decode: weights and
caches bf16); deterministic (bf16, with PyTorch's deterministic algorithms); products (bf16,
decode's attention as products and a softmax). DEVICE: cpu or
cuda. Training steps with fused AdamW and gradient clipping, on random tokens, or with
BATCH and LENGTH decode steps behind LENGTH tokens, on a GPU as one CUDA graph. Prepares and
warms up, prints {"ready": version}, then for each line of stdin times STEPS steps and
prints seconds of one (median), and bytes of the GPU at most: turns are dealt by
bench.py, and nothing is compiled twice.
"""
import json
import os
import statistics
import sys
import time

import torch

import bench_peer
from dotconfig import DotConfig

NARROW = ("bf16", "deterministic", "products")


def adamw(cfg, model):
    """AdamW with decay on matrices only; fused where this version has it on the cpu."""
    params = list(model.parameters())
    groups = [{"params": [p for p in params if p.dim() >= 2],
               "weight_decay": cfg.f("WEIGHT_DECAY")},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    more = {"lr": cfg.f("LEARNING_RATE"), "eps": cfg.f("ADAM_EPSILON"),
            "betas": (cfg.f("ADAM_BETA1"), cfg.f("ADAM_BETA2"))}
    try:
        return torch.optim.AdamW(groups, fused=True, **more)
    except (RuntimeError, TypeError):
        return torch.optim.AdamW(groups, foreach=True, **more)


def training(way, device, cfg, plan):
    """A function that does one step, and on a GPU waits for nothing."""
    model = bench_peer.model_of(cfg, plan)
    opt = adamw(cfg, model)
    micros, shape = cfg.i("GRADIENT_ACCUMULATION"), (cfg.i("BATCH_SIZE"), cfg.i("BLOCK_SIZE") + 1)

    def loss_of(x, y):
        with torch.autocast(device, torch.bfloat16, enabled=way in NARROW):
            return model(x, y)

    run = loss_of if way == "eager" else torch.compile(loss_of)

    def step():
        opt.zero_grad(set_to_none=True)
        for _ in range(micros):
            tokens = torch.randint(cfg.i("VOCAB_SIZE"), shape)
            loss = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            (loss / micros).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.f("GRAD_CLIP"))
        opt.step()
        return loss if device == "cuda" else loss.item()
    return step


def decode(way, device, cfg, plan, batch, length):
    """A function that does one step behind @length tokens, from the tokens on the host."""
    model = bench_peer.model_of(cfg, plan).eval()
    if way in NARROW:
        model = model.bfloat16()
    caches = model.caches(batch, length)
    tokens = torch.arange(batch) % cfg.i("VOCAB_SIZE")
    run = model.step if way == "eager" else torch.compile(model.step)

    def step():
        with torch.no_grad():
            return run(tokens, caches, length)
    if device != "cuda":
        return step
    host, graph = tokens.cpu().pin_memory(), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()

    def replay():
        tokens.copy_(host, non_blocking=True)
        graph.replay()
        torch.cuda.synchronize()
    return replay


def by_clock(step, steps):
    """Seconds of each step, by the host's clock."""
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def by_events(step, steps):
    """The GPU's seconds of each step; nobody waits in between."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]


def prepare(way, device, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    bench_peer.Attention.products = way == "products"
    if device == "cuda":
        torch.set_default_device(device)
    if way == "deterministic":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)


def main():
    way, device, config, plan = sys.argv[1:5]
    steps, warmup, threads, *decoding = map(int, sys.argv[5:])
    cfg = DotConfig.load(config)
    with open(plan, encoding="utf-8") as f:
        plan = json.load(f)
    prepare(way, device, threads)
    step = decode(way, device, cfg, plan, *decoding) if decoding else \
        training(way, device, cfg, plan)
    for _ in range(warmup):
        step()
    timed = by_clock if decoding or device != "cuda" else by_events
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for _ in sys.stdin:
        said = {"step": statistics.median(timed(step, steps))}
        if device == "cuda":
            said["memory"] = torch.cuda.max_memory_allocated()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
