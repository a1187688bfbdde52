# SPDX-License-Identifier: MIT
"""The models of `make bench` as somebody writes them in PyTorch who wants speed:
nn.Module, one product for query, key and value, scaled_dot_product_attention, cross
entropy on the rounded vocabulary. scripts/torch_model.py is the reference; this is the
peer, and computes the same products on the same shapes.

    GPT2(cfg)           GPT-2, and decode with static caches
    RaMla(cfg, plan)    latent attention with the mechanisms that are on: the reference's
                        functions, but for attention, whose keys and values are expanded
                        for scaled_dot_product_attention; routing needs its rows as a
                        matrix, without a gradient
    bench_linear.Gla        linear attention
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

import bench_linear
import torch_model


def attention(q, k, v, is_causal=False):
    """PyTorch before 2.0 has it under another name."""
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return F._scaled_dot_product_attention(q, k, v, is_causal=is_causal)[0]


class Attention(nn.Module):
    products = False        # decode by products that torch.compile may join

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def split(self, x):
        b, t, c = x.shape
        return (y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
                for y in self.c_attn(x).split(c, dim=2))

    def join(self, y, x):
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        q, k, v = self.split(x)
        return self.join(attention(q, k, v, is_causal=True), x)

    def step(self, x, cache, at):
        """x [B,1,C]; cache [2,B,H,T+1,D], this token at @at, the last position."""
        q, k, v = self.split(x)
        cache[0, :, :, at] = k[:, :, 0]
        cache[1, :, :, at] = v[:, :, 0]
        if self.products:
            scores = q @ cache[0].transpose(2, 3) / math.sqrt(q.shape[-1])
            return self.join(scores.softmax(-1) @ cache[1], x)
        return self.join(attention(q, cache[0], cache[1]), x)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def mlp(self, x):
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    def forward(self, x):
        return self.mlp(x + self.attn(self.ln_1(x)))

    def step(self, x, cache, at):
        return self.mlp(x + self.attn.step(self.ln_1(x), cache, at))


class GPT2(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.heads = cfg.i("N_EMBD"), cfg.i("N_HEAD")
        vocab = -(-cfg.i("VOCAB_SIZE") // 64) * 64
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(cfg.i("BLOCK_SIZE"), width)
        self.blocks = nn.ModuleList(Block(width, self.heads) for _ in range(cfg.i("N_LAYER")))
        self.ln_f = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() >= 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def caches(self, b, length):
        """Random keys and values of @length tokens, room for one more."""
        d = self.wte.weight.shape[1] // self.heads
        return [torch.randn(2, b, self.heads, length + 1, d, dtype=self.wte.weight.dtype)
                for _ in self.blocks]

    def step(self, tokens, caches, at):
        """Logits of one token [B] for each sequence at position @at."""
        x = self.wte(tokens).unsqueeze(1) + self.wpe.weight[at]
        for block, cache in zip(self.blocks, caches):
            x = block.step(x, cache, at)
        return F.linear(self.ln_f(x), self.wte.weight)[:, 0]


def ra_mla(cfg, p, x, taps, wanted):
    """torch_model.ra_mla() for speed, where there is no reciprocal term."""
    if cfg.f("RA_MLA_RA_ALPHA") > 0:
        return torch_model.ra_mla(cfg, p, x, taps, wanted)
    q = torch_model.split_heads(torch_model.linear(p, "q_proj", x), cfg.i("N_HEAD"))
    k, v = torch_model.linear(p, "k_down", x), torch_model.linear(p, "v_down", x)
    gamma, mix = taps.get("HEAD_GATE"), taps.get("LATENT_MIX")
    if mix is not None:
        k = k + cfg.f("RA_MLA_MLP_RECIP_ALPHA") * mix
    keys = (k.unsqueeze(1) @ p["q_to_latent"].transpose(-1, -2)).expand_as(q)
    values = (v.unsqueeze(1) @ p["v_up"]).expand_as(q)
    scaled = q * math.sqrt(q.shape[-1] / k.shape[-1])    # attention() divides by sqrt(D)
    y = attention(scaled, keys, values, is_causal=True).transpose(1, 2)
    if gamma is not None:
        y = y * gamma.unsqueeze(-1)
    out = {"LATENT": k}
    if "ROUTE" in wanted:
        with torch.no_grad():
            scores = q @ keys.transpose(2, 3) / math.sqrt(k.shape[-1])
            out["ROUTE"] = torch_model.causal_probs(scores), gamma
    return torch_model.linear(p, "out_proj", y.reshape(x.shape)), out


class RaMla(nn.Module):
    """The reference's functions behind nn.Module, its masks and counts as they are."""

    def __init__(self, cfg, plan):
        super().__init__()
        torch_model.MIXERS["ra_mla"] = ra_mla
        # made before anything is compiled, where the default device counts
        length = cfg.i("BLOCK_SIZE")
        mask, column = torch_model.future_mask(length), torch.arange(1, length + 1).unsqueeze(-1)
        torch_model.future_mask = lambda t: mask[:t, :t]
        torch_model.positions = lambda t, dtype: column[:t].to(dtype)
        self.model = torch_model.Model(cfg, plan)
        self.names = list(self.model.shapes)
        self.weights = nn.ParameterList(
            nn.Parameter(self.initial(name, shape)) for name, shape in self.model.shapes.items())

    @staticmethod
    def initial(name, shape):
        if ".ln_" in name or name.startswith("ln_f"):
            return torch.full(shape, float(name.endswith("weight")))
        return torch.zeros(shape) if name.endswith("bias") else torch.randn(shape) * 0.02

    def forward(self, tokens, targets):
        p = dict(zip(self.names, self.weights))
        return self.model.forward(p, tokens, targets, mask_padding=False)[1]


def model_of(cfg, plan):
    """The peer of one configuration."""
    mixers = {sub["mixer"] for sub in plan["sublayers"]}
    if "gla" in mixers:
        return bench_linear.Gla(cfg, "mlp" in mixers)
    return GPT2(cfg) if mixers == {"mha", "mlp"} else RaMla(cfg, plan)

