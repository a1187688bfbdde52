# SPDX-License-Identifier: MIT
"""One side of `make bench`: a configuration in PyTorch, in one of three ways.

    bench_torch.py WAY CONFIG PLAN STEPS WARMUP THREADS [BATCH LENGTH]

WAY: eager; compiled (torch.compile); bf16 (compiled, bf16 autocast; decode: weights and
caches bf16). Training steps with fused AdamW and gradient clipping, on random tokens, or
with BATCH and LENGTH decode steps behind LENGTH tokens. Prepares and warms up, prints
{"ready": version}, then for each line of stdin times STEPS steps and prints seconds of
one (median): turns are dealt by bench.py, and nothing is compiled twice.
"""
import json
import statistics
import sys
import time

import torch

import bench_peer
from dotconfig import DotConfig


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


def training(way, cfg, plan):
    """A function that does one step."""
    model = bench_peer.model_of(cfg, plan)
    opt = adamw(cfg, model)
    micros, shape = cfg.i("GRADIENT_ACCUMULATION"), (cfg.i("BATCH_SIZE"), cfg.i("BLOCK_SIZE") + 1)

    def loss_of(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
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
        return loss.item()
    return step


def decode(way, cfg, plan, batch, length):
    """A function that does one step behind @length tokens."""
    model = bench_peer.model_of(cfg, plan).eval()
    if way == "bf16":
        model = model.bfloat16()
    caches = model.caches(batch, length)
    tokens = torch.arange(batch) % cfg.i("VOCAB_SIZE")
    run = model.step if way == "eager" else torch.compile(model.step)

    def step():
        with torch.no_grad():
            return run(tokens, caches, length)
    return step


def main():
    way, config, plan = sys.argv[1:4]
    steps, warmup, threads, *decoding = map(int, sys.argv[4:])
    cfg = DotConfig.load(config)
    with open(plan, encoding="utf-8") as f:
        plan = json.load(f)
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    step = decode(way, cfg, plan, *decoding) if decoding else training(way, cfg, plan)
    for _ in range(warmup):
        step()
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"step": statistics.median(seconds)}), flush=True)


if __name__ == "__main__":
    main()
