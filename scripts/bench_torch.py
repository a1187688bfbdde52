# SPDX-License-Identifier: MIT
"""One side of `make bench`: training steps of a configuration in eager PyTorch.

    bench_torch.py CONFIG PLAN STEPS WARMUP THREADS

Float32 on the cpu, the model of scripts/torch_model.py with the stack of PLAN (the
binary's `plan --json`), AdamW and gradient clipping of torch,
random tokens. Prints seconds of a step (median) as JSON.
"""
import json
import statistics
import sys
import time

import torch

import torch_model
from dotconfig import DotConfig


def parameters(shapes):
    """GPT-2's initial values; norms 1."""
    def value(name, shape):
        if ".ln_" in name or name.startswith("ln_f"):
            return torch.full(shape, float(name.endswith("weight")))
        return torch.zeros(shape) if name.endswith("bias") else torch.randn(shape) * 0.02
    return {name: torch.nn.Parameter(value(name, shape))
            for name, shape in shapes.items()}


def optimizer(cfg, params):
    """AdamW with decay on matrices only."""
    decay = [p for p in params.values() if p.dim() >= 2]
    rest = [p for p in params.values() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": cfg.f("WEIGHT_DECAY")},
         {"params": rest, "weight_decay": 0.0}],
        lr=cfg.f("LEARNING_RATE"), eps=cfg.f("ADAM_EPSILON"),
        betas=(cfg.f("ADAM_BETA1"), cfg.f("ADAM_BETA2")))


def step(model, params, opt, tokens):
    opt.zero_grad(set_to_none=True)
    for micro in tokens:
        loss = model.forward(params, micro[:, :-1], micro[:, 1:], mask_padding=False)[1]
        (loss / len(tokens)).backward()
    torch.nn.utils.clip_grad_norm_(params.values(), model.cfg.f("GRAD_CLIP"))
    opt.step()
    return loss.item()


def main():
    steps, warmup, threads = map(int, sys.argv[3:6])
    cfg = DotConfig.load(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as f:
        model = torch_model.Model(cfg, json.load(f))
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    params = parameters(model.shapes)
    opt = optimizer(cfg, params)
    shape = (cfg.i("GRADIENT_ACCUMULATION"), cfg.i("BATCH_SIZE"), cfg.i("BLOCK_SIZE") + 1)
    seconds = []
    for _ in range(warmup + steps):
        tokens = torch.randint(cfg.i("VOCAB_SIZE"), shape)
        began = time.perf_counter()
        step(model, params, opt, tokens)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"step": statistics.median(seconds[warmup:])}))


if __name__ == "__main__":
    main()
