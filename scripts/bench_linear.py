# SPDX-License-Identifier: MIT
"""The peer of `make bench` for gla without output norm, gate and convolution: nn.Module, one
product for queries, keys, values and decays, and the chunked form of the recurrence.

A chunk is one block of LENGTH positions: what meets inside it is made element by element from
differences of cumulated logarithms, so that no exponent is positive whatever the decays;
between chunks the state passes in a loop. 8 positions are the fastest of 4, 8, 16 and 32 on a cpu.
"""
import torch
import torch.nn.functional as F
from torch import nn

LENGTH = 8


def chunked(q, k, v, g):
    """o of S_t = diag(e^g_t) S_(t-1) + k_t v_t^T, o_t = S_t^T q_t: q, k, g [B,n,T,K],
    v [B,n,T,V], T a multiple of LENGTH."""
    q, k, v, g = (x.unflatten(2, (-1, LENGTH)) for x in (q, k, v, g))
    b = g.cumsum(3)                                                   # [B,n,N,L,K]
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=q.device).tril()
    decay = (b.unsqueeze(4) - b.unsqueeze(3)).masked_fill(~seen[..., None], -torch.inf).exp()
    inside = torch.einsum("zhntk,zhnuk,zhntuk->zhntu", q, k, decay)
    last = b[:, :, :, -1:]
    added = (k * (last - b).exp()).transpose(3, 4) @ v                # [B,n,N,K,V]
    keep = last.exp().transpose(3, 4)                                 # [B,n,N,K,1]
    states = [torch.zeros_like(added[:, :, 0])]
    for a, s in zip(keep.unbind(2)[:-1], added.unbind(2)):
        states.append(a * states[-1] + s)
    return ((q * b.exp()) @ torch.stack(states, 2) + inside @ v).flatten(2, 3)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.heads = cfg.i("N_EMBD"), cfg.i("N_HEAD")
        keys, values = self.heads * cfg.i("GLA_KEY_DIM"), self.heads * cfg.i("GLA_VALUE_DIM")
        decays = {"vector": keys, "scalar": self.heads}[cfg.s("GLA_DECAY")]
        self.sizes, self.tau = [keys, keys, values, decays], cfg.f("GLA_GATE_TAU")
        self.unit = cfg.y("GLA_K_NORM")
        self.proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.bias = nn.Parameter(torch.full((decays,), cfg.f("GLA_GATE_BIAS")))
        self.o_proj = nn.Linear(values, width, bias=False)

    def forward(self, x):
        q, k, v, z = (y.unflatten(2, (self.heads, -1)).transpose(1, 2)
                      for y in self.join(x).split(self.sizes, 2))
        if self.unit:
            k = F.normalize(k, dim=-1)
        g = (F.logsigmoid(z) / self.tau).expand_as(k)
        return self.o_proj(chunked(q, k, v, g).transpose(1, 2).flatten(2))

    def join(self, x):
        """Queries, keys, values and decays before their activation."""
        y = self.proj(x)
        return torch.cat((y[..., :-len(self.bias)], y[..., -len(self.bias):] + self.bias), 2)


class Block(nn.Module):
    def __init__(self, cfg, mlp):
        super().__init__()
        width = cfg.i("N_EMBD")
        self.dropout = cfg.f("RESID_DROPOUT")
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(cfg)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width),
                                 nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)) \
            if mlp else None

    def forward(self, x):
        x = x + F.dropout(self.attn(self.ln_1(x)), self.dropout, self.training)
        return x + F.dropout(self.mlp(x), self.dropout, self.training) if self.mlp else x


class Gla(nn.Module):
    def __init__(self, cfg, mlp):
        super().__init__()
        width, vocab = cfg.i("N_EMBD"), -(-cfg.i("VOCAB_SIZE") // 64) * 64
        if any(map(cfg.y, ("GLA_OUT_NORM", "GLA_OUT_GATE", "GLA_Q_SCALE"))) or cfg.i("GLA_CONV") \
                or cfg.i("GLA_GATE_RANK"):
            raise ValueError("this peer has no output norm, gate, scale, convolution and gate rank")
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(cfg.i("WPE_ROWS") or cfg.i("BLOCK_SIZE"), width)
        self.blocks = nn.ModuleList(Block(cfg, mlp) for _ in range(cfg.i("N_LAYER")))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        if cfg.y("HEAD_TIED"):
            self.head.weight = self.wte.weight

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.ln_f(x)).flatten(0, 1), targets.flatten())
