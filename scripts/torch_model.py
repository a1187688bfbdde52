# SPDX-License-Identifier: MIT
"""The whole model in PyTorch, from the equations of the documentation.

Dense: it holds [B,H,T,T] attention and lets autograd differentiate, so that it
shares nothing with the C code but the mathematics. scripts/torch_ref.py runs it
in float64 against `tenon dump`, scripts/bench.py in float32 against the clock.

Letters: B sequences, T positions, C width, H heads, D = C/H, L latent, F = 4C,
G gate width, V padded vocabulary, N untied latent width.
"""
import functools
import math

import torch
import torch.nn.functional as F


def sublayers(cfg):
    """[(word, prefix of its norm, its own prefix)] of the stack."""
    role = {"mha": "attn", "ra_mla": "attn", "mlp": "mlp", "recip": "mlp"}
    out = []
    for layer in range(cfg.i("N_LAYER")):
        seen = {"attn": 0, "mlp": 0}
        for n, word in enumerate(cfg.s("BLOCK").split()):
            folder = role[word]
            seen[folder] += 1
            nth = f"_{seen[folder]}" if seen[folder] > 1 else ""
            out.append((word, f"h.{layer}.ln_{n + 1}.", f"h.{layer}.{folder}{nth}."))
    return out


def is_read(subs, at):
    """Whether a later ra_mla reads what the recip at @at writes."""
    for word, _, _ in subs[at + 1:]:
        if word in ("ra_mla", "recip"):
            return word == "ra_mla"
    return False


def padded_vocab(cfg):
    return -(-cfg.i("VOCAB_SIZE") // 64) * 64


@functools.lru_cache(maxsize=None)
def future_mask(t):
    """True where u > t: [T,T]."""
    return torch.ones(t, t, dtype=torch.bool).triu(1)


@functools.lru_cache(maxsize=None)
def positions(t, dtype):
    """1..T as a column."""
    return torch.arange(1, t + 1, dtype=dtype).unsqueeze(-1)


def routing_rows(probs, gamma):
    """R_h = gamma P of one layer, detached: [B,H,T,T], gamma [B,T,H] or None."""
    probs = probs.detach()
    return probs if gamma is None else probs * gamma.detach().transpose(1, 2).unsqueeze(-1)


def causal_probs(scores):
    """Softmax over u <= t of scores [B,H,T,T]."""
    return scores.masked_fill(future_mask(scores.shape[-1]), -math.inf).softmax(-1)


def heads_out(probs, values, gamma):
    """gamma * P @ values as [B,T,H*D]; values [B,H,T,D], gamma [B,T,H] or None."""
    out = (probs @ values).transpose(1, 2)                   # [B,T,H,D]
    if gamma is not None:
        out = out * gamma.unsqueeze(-1)
    return out.reshape(out.shape[0], out.shape[1], -1)


def mha(cfg, p, prefix, x):
    """GPT-2 attention: y [B,T,C]."""
    b, t, c = x.shape
    heads = cfg.i("N_HEAD")
    qkv = F.linear(x, p[prefix + "c_attn.weight"], p[prefix + "c_attn.bias"])
    q, k, v = (part.view(b, t, heads, c // heads).transpose(1, 2)
               for part in qkv.split(c, dim=2))              # [B,H,T,D]
    probs = causal_probs(q @ k.transpose(2, 3) / math.sqrt(c // heads))
    return F.linear(heads_out(probs, v, None), p[prefix + "c_proj.weight"],
                    p[prefix + "c_proj.bias"])


def reciprocal_band(cfg, qt, k):
    """(alpha_ra / sqrt L) <q~_u, k_t> for 0 <= t-u <= W, else 0: [B,H,T,T]."""
    t = k.shape[1]
    swapped = k.unsqueeze(1) @ qt.transpose(2, 3)            # [t,u] = <k_t, q~_u>
    band = torch.ones(t, t, dtype=torch.bool).tril().triu(-cfg.i("RA_MLA_RA_WINDOW"))
    swapped = swapped * (cfg.f("RA_MLA_RA_ALPHA") / math.sqrt(k.shape[-1]))
    return swapped.masked_fill(~band, 0.0)


def ra_mla(cfg, p, prefix, x, gamma, mix):
    """Latent attention: (y [B,T,C], (P, gamma), keys [B,T,L])."""
    b, t, c = x.shape
    heads = cfg.i("N_HEAD")
    q = F.linear(x, p[prefix + "q_proj.weight"]).view(b, t, heads, c // heads)
    k = F.linear(x, p[prefix + "k_down.weight"])
    v = F.linear(x, p[prefix + "v_down.weight"])
    if mix is not None:
        k = k + cfg.f("RA_MLA_MLP_RECIP_ALPHA") * mix
    # one [D,L] or [L,D] for all heads broadcasts over the head dimension
    qt = q.transpose(1, 2) @ p[prefix + "q_to_latent"]       # [B,H,T,L]
    values = v.unsqueeze(1) @ p[prefix + "v_up"]             # [B,H or 1,T,D]
    scores = qt @ k.transpose(1, 2).unsqueeze(1) / math.sqrt(k.shape[-1])
    if cfg.f("RA_MLA_RA_ALPHA") > 0:
        scores = scores + reciprocal_band(cfg, qt, k)
    probs = causal_probs(scores)
    y = F.linear(heads_out(probs, values, gamma), p[prefix + "out_proj.weight"])
    return y, (probs, gamma), k


def sparsify(cfg, rows):
    """R^ from routing rows [B,R,T,T] (zeros for u > t)."""
    mode, t = cfg.s("RA_MLA_MLP_SPARSE_MODE"), rows.shape[-1]
    if mode == "topk":
        k = min(cfg.i("RA_MLA_MLP_SPARSE_K"), t)
        ranked = rows.masked_fill(future_mask(t), -1.0)
        if rows.dtype == torch.float64:                      # ties: smaller u first
            index = ranked.sort(dim=-1, descending=True, stable=True)[1][..., :k]
        else:
            index = ranked.topk(k, -1, sorted=False)[1]
        rows = torch.zeros_like(rows).scatter_(-1, index, rows.gather(-1, index))
    elif mode == "rms":
        rms = (rows.square().sum(-1, keepdim=True) / positions(t, rows.dtype)).sqrt()
        tau = cfg.f("RA_MLA_MLP_SPARSE_RMS_THRESHOLD")
        rows = rows.masked_fill(rows < tau * rms, 0.0)
    if cfg.y("RA_MLA_MLP_SPARSE_NORMALIZE"):
        rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-8)
    return rows


def cross_token(cfg, p, prefix, h, attention):
    """Mechanism 2: h + alpha_c (R^ h) cross_proj^T."""
    b, t, f = h.shape
    rows = routing_rows(*attention)
    if cfg.y("RA_MLA_MLP_SPARSE_HEAD_AVERAGE"):
        mixed = sparsify(cfg, rows.mean(1, keepdim=True)).squeeze(1) @ h
    else:
        slices = h.view(b, t, cfg.i("N_HEAD"), -1).transpose(1, 2)
        mixed = (sparsify(cfg, rows) @ slices).transpose(1, 2).reshape(b, t, f)
    alpha = cfg.f("RA_MLA_MLP_CROSS_ALPHA")
    return h + alpha * F.linear(mixed, p[prefix + "cross_proj.weight"])


def latent_to_hidden(cfg, p, prefix, a):
    """Mechanism 3, A(a): [B,T,L] -> [B,T,F]."""
    mode = cfg.s("RA_MLA_MLP_TYING_MODE")
    if mode == "untied":
        return F.linear(a, p[prefix + "attn_to_mlp.weight"])
    if mode == "tied_transpose":
        return F.linear(a, p[prefix + "coupler"])
    f = 4 * cfg.i("N_EMBD")
    scale = p[prefix + "attn_scale"].repeat_interleave(f // cfg.i("N_HEAD"))
    return scale * a.repeat(1, 1, f // a.shape[-1])


def hidden_to_latent(cfg, p, prefix, h0):
    """Mechanism 3, M(h0): [B,T,F] -> [B,T,L]."""
    mode = cfg.s("RA_MLA_MLP_TYING_MODE")
    if mode == "untied":
        return F.linear(F.linear(h0, p[prefix + "mlp_down.weight"]),
                        p[prefix + "mlp_to_attn.weight"])
    if mode == "tied_transpose":
        return h0 @ p[prefix + "coupler"]
    b, t, f = h0.shape
    latent = cfg.i("RA_MLA_LATENT_DIM")
    scale = p[prefix + "mlp_scale"].repeat_interleave(f // cfg.i("N_HEAD"))
    return (scale * h0).view(b, t, f // latent, latent).sum(2) * (latent / f)


def head_gate(cfg, p, prefix, h):
    """Mechanism 1: gamma [B,T,H] for the next layer's heads."""
    z = F.linear(h, p[prefix + "gate_proj.weight"])          # [B,T,G]
    pool = cfg.s("RA_MLA_MLP_GATE_POOL")
    if pool == "causal":
        z = z.cumsum(1) / positions(z.shape[1], z.dtype)
    elif pool == "sequence":
        z = z.mean(1, keepdim=True).expand_as(z)
    g = torch.sigmoid(F.linear(z, p[prefix + "gate_to_heads.weight"]))
    alpha = cfg.f("RA_MLA_MLP_GATE_ALPHA")
    return (1 - alpha) + alpha * g


def hidden(p, prefix, x):
    """GELU(c_fc x): [B,T,F]."""
    return F.gelu(F.linear(x, p[prefix + "c_fc.weight"], p[prefix + "c_fc.bias"]),
                  approximate="tanh")


def project(p, prefix, h):
    return F.linear(h, p[prefix + "c_proj.weight"], p[prefix + "c_proj.bias"])


def recip(cfg, p, prefix, x, attention, latent, read):
    """MLP with the mechanisms that are on: (y, gamma or None, mix or None)."""
    h = hidden(p, prefix, x)
    gamma = mix = None
    if cfg.y("RA_MLA_MLP_LATENT_RECIP"):
        a = latent.detach() if cfg.y("RA_MLA_MLP_LATENT_DETACH") else latent
        if read:
            mix = hidden_to_latent(cfg, p, prefix, h)
        h = h + cfg.f("RA_MLA_MLP_RECIP_ALPHA") * latent_to_hidden(cfg, p, prefix, a)
    if cfg.y("RA_MLA_MLP_CROSS_TOKEN"):
        h = cross_token(cfg, p, prefix, h, attention)
    if cfg.y("RA_MLA_MLP_ATTN_GATE") and read:
        gamma = head_gate(cfg, p, prefix, h)
    return project(p, prefix, h), gamma, mix


def layer_norm(p, prefix, x):
    weight = p[prefix + "weight"]
    return F.layer_norm(x, weight.shape, weight, p[prefix + "bias"], 1e-5)


def forward(cfg, p, tokens, mask_padding=True):
    """Logits [B,T,V] and mean loss of tokens [B,T+1].

    Without @mask_padding the padded columns compete, as they do in code that rounds
    the vocabulary up for speed.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = p["wte.weight"][inputs] + p["wpe.weight"][: inputs.shape[1]]
    subs = sublayers(cfg)
    gamma = mix = attention = latent = None
    for at, (word, norm, prefix) in enumerate(subs):
        xn = layer_norm(p, norm, x)
        if word == "mha":
            y = mha(cfg, p, prefix, xn)
        elif word == "ra_mla":
            y, attention, latent = ra_mla(cfg, p, prefix, xn, gamma, mix)
            gamma = mix = None
        elif word == "mlp":
            y = project(p, prefix, hidden(p, prefix, xn))
        else:
            y, gamma, mix = recip(cfg, p, prefix, xn, attention, latent, is_read(subs, at))
        x = x + y
    logits = F.linear(layer_norm(p, "ln_f.", x), p["wte.weight"])
    if mask_padding:
        pad = torch.arange(logits.shape[-1]) >= cfg.i("VOCAB_SIZE")
        logits = logits.masked_fill(pad, -math.inf)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return logits, loss


def shapes(cfg):
    """{name: shape} of every parameter that exists."""
    c, heads = cfg.i("N_EMBD"), cfg.i("N_HEAD")
    out = {"wte.weight": (padded_vocab(cfg), c), "wpe.weight": (cfg.i("BLOCK_SIZE"), c)}
    subs = sublayers(cfg)
    for at, (word, norm, prefix) in enumerate(subs):
        if word == "mha":
            leaves = {"c_attn.weight": (3 * c, c), "c_attn.bias": (3 * c,),
                      "c_proj.weight": (c, c), "c_proj.bias": (c,)}
        elif word == "ra_mla":
            leaves = ra_mla_shapes(cfg, c, heads)
        else:
            leaves = {"c_fc.weight": (4 * c, c), "c_fc.bias": (4 * c,),
                      "c_proj.weight": (c, 4 * c), "c_proj.bias": (c,)}
            if word == "recip":
                leaves.update(recip_shapes(cfg, 4 * c, heads, is_read(subs, at)))
        out.update({norm + "weight": (c,), norm + "bias": (c,)})
        out.update({prefix + leaf: shape for leaf, shape in leaves.items()})
    out.update({"ln_f.weight": (c,), "ln_f.bias": (c,)})
    return out


def ra_mla_shapes(cfg, c, heads):
    latent, d = cfg.i("RA_MLA_LATENT_DIM"), c // heads
    q_heads = (heads,) if cfg.y("RA_MLA_PER_HEAD_Q_LATENT") else ()
    v_heads = (heads,) if cfg.y("RA_MLA_PER_HEAD_V_UP") else ()
    return {"q_proj.weight": (c, c), "k_down.weight": (latent, c),
            "v_down.weight": (latent, c), "q_to_latent": q_heads + (d, latent),
            "v_up": v_heads + (latent, d), "out_proj.weight": (c, c)}


def recip_shapes(cfg, f, heads, read):
    out, latent = {}, cfg.i("RA_MLA_LATENT_DIM")
    if cfg.y("RA_MLA_MLP_CROSS_TOKEN"):
        out["cross_proj.weight"] = (f, f)
    if cfg.y("RA_MLA_MLP_ATTN_GATE") and read:
        gate = cfg.i("RA_MLA_MLP_GATE_DIM")
        out.update({"gate_proj.weight": (gate, f), "gate_to_heads.weight": (heads, gate)})
    if cfg.y("RA_MLA_MLP_LATENT_RECIP"):
        mode, n = cfg.s("RA_MLA_MLP_TYING_MODE"), cfg.i("RA_MLA_MLP_LATENT_DIM")
        up, down = {
            "untied": ({"attn_to_mlp.weight": (f, latent)},
                       {"mlp_down.weight": (n, f), "mlp_to_attn.weight": (latent, n)}),
            "tied_transpose": ({"coupler": (f, latent)}, {}),
            "per_head_scalar": ({"attn_scale": (heads,)}, {"mlp_scale": (heads,)}),
        }[mode]
        out.update({**up, **(down if read else {})})
    return out
