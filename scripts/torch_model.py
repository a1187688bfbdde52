# SPDX-License-Identifier: MIT
"""The whole model in PyTorch, from the equations of the documentation.

Dense: it holds [B,H,T,T] attention and lets autograd differentiate, so that it
shares nothing with the C code but the mathematics. scripts/torch_ref.py runs it
in float64 against `tenon dump`, scripts/bench.py in float32 against the clock.

Which tensors there are, their shapes, and which sub-layer reads what another one
writes come from `tenon plan --json`; a mixer here is one function, found by its
name in MIXERS:

    mixer(cfg, p, x, taps, wanted) -> y, {tap: value}

cfg the configuration, p its tensors by their leaf names, x [B,T,C], taps the values
that it reads (None: nobody writes them), wanted the names of the taps that somebody
reads, y [B,T,C]. Among what it writes, AUX is an auxiliary loss: the symbol of its weight,
and its value, of which the mean over the sub-layers that have one counts.

Letters: B sequences, T positions, C width, H heads, D = C/H, L latent, F hidden,
G gate width, V padded vocabulary, N untied latent width.
"""
import functools
import math

import torch
import torch.nn.functional as F


# ---- what mixers share ---------------------------------------------------------


@functools.lru_cache(maxsize=None)
def future_mask(t):
    """True where u > t: [T,T]."""
    return torch.ones(t, t, dtype=torch.bool).triu(1)


@functools.lru_cache(maxsize=None)
def positions(t, dtype):
    """1..T as a column."""
    return torch.arange(1, t + 1, dtype=dtype).unsqueeze(-1)


def linear(p, name, x):
    """y = x w^T, and the bias where the layer has one."""
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def causal_probs(scores):
    """Softmax over u <= t of scores [B,H,T,T]."""
    return scores.masked_fill(future_mask(scores.shape[-1]), -math.inf).softmax(-1)


def split_heads(x, heads):
    """[B,T,heads*D] -> [B,heads,T,D]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def rotate(cfg, x):
    """R: pair i of x [B,heads,T,d] is (i, i + d/2), its angle t theta^(-2i/d)."""
    t, d = x.shape[-2:]
    turns = cfg.f("ROPE_THETA") ** (-torch.arange(d // 2, dtype=torch.float64) * 2 / d)
    angle = torch.arange(t, dtype=torch.float64).unsqueeze(-1) * turns
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    low, high = x.split(d // 2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def heads_out(probs, values, gamma=None):
    """gamma * P @ values as [B,T,H*D]; values [B,H,T,D], gamma [B,T,H] or None."""
    out = (probs @ values).transpose(1, 2)                   # [B,T,H,D]
    if gamma is not None:
        out = out * gamma.unsqueeze(-1)
    return out.reshape(out.shape[0], out.shape[1], -1)


# ---- mha, mlp, swiglu: GPT-2 and LLaMA ---------------------------------------------------------


def mha(cfg, p, x, taps, wanted):
    """Attention; query head h reads key and value head floor(h groups / heads)."""
    c, heads, groups = x.shape[-1], cfg.i("N_HEAD"), cfg.i("KV_HEADS") or cfg.i("N_HEAD")
    d = c // heads
    q, k, v = linear(p, "c_attn", x).split([c, groups * d, groups * d], dim=2)
    q, k, v = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    if cfg.y("MHA_ROPE"):
        q, k = rotate(cfg, q), rotate(cfg, k)
    if groups < heads:
        k, v = (y.repeat_interleave(heads // groups, dim=1) for y in (k, v))
    probs = causal_probs(q @ k.transpose(2, 3) / math.sqrt(d))
    return linear(p, "c_proj", heads_out(probs, v)), {}


def hidden(p, x):
    """GELU(c_fc x): [B,T,F]."""
    return F.gelu(linear(p, "c_fc", x), approximate="tanh")


def mlp(cfg, p, x, taps, wanted):
    return linear(p, "c_proj", hidden(p, x)), {}


def swiglu(cfg, p, x, taps, wanted):
    return gated(p, "", x), {}


def mlp_splice(cfg, p, x, taps, wanted):
    """An MLP between splice.weight and its transpose."""
    narrow = F.linear(x, p["splice.weight"])
    return linear(p, "c_proj", hidden(p, narrow)) @ p["splice.weight"], {}


def gated(p, prefix, x):
    """(SiLU(x gate^T) * x up^T) down^T."""
    h = F.silu(linear(p, prefix + "gate_proj", x)) * linear(p, prefix + "up_proj", x)
    return linear(p, prefix + "down_proj", h)


def moe(cfg, p, x, taps, wanted):
    """A mixture of experts; every expert sees every token, weighted by 0 where not chosen."""
    experts, k = cfg.i("NUM_EXPERTS"), cfg.i("EXPERTS_PER_TOK")
    logits = linear(p, "router", x)                          # [B,T,E]
    key = logits.detach()
    if "router.balance_bias" in p:
        key = key + p["router.balance_bias"]
    slots = key.sort(dim=-1, descending=True, stable=True)[1][..., :k]
    weights = logits.gather(-1, slots).softmax(-1)
    chosen = torch.zeros_like(logits).scatter(-1, slots, weights)
    y = gated(p, "shared_experts.", x) if "shared_experts.gate_proj.weight" in p else 0
    for e in range(experts):
        one = {n + "_proj.weight": p[f"experts.{n}_proj.weight"][e] for n in ("gate", "up", "down")}
        y = y + chosen[..., e:e + 1] * gated(one, "", x)
    share = torch.bincount(slots.flatten(), minlength=experts).to(x.dtype) / slots.numel()
    balance = experts * (share * logits.softmax(-1).mean((0, 1))).sum()
    return y, {"AUX": ("LOAD_BALANCE_ALPHA", balance)}


# ---- mla: latent attention of DeepSeek-V2 ------------------------------------------


def rms_norm(cfg, p, name, x, part=slice(None)):
    """RMSNorm with its own weight, or part of it; without a weight identity."""
    weight = p.get(name + ".weight")
    if weight is None:
        return x
    return weight[part] * x * (x.square().mean(-1, keepdim=True) + cfg.f("NORM_EPSILON")).rsqrt()


def splice(p, c, half):
    """KVSplice of one half of the latents [B,T,r]."""
    r = c.shape[-1]
    rows = p["kv_splice.compress"].shape[0] * r // len(p["kv_splice.scale"])
    own, narrow = slice(half * r, (half + 1) * r), slice(half * rows, (half + 1) * rows)
    sigma = F.softplus(p["kv_splice.scale"][own])
    shift, compress = p["kv_splice.shift"][own], p["kv_splice.compress"][narrow]
    expand = p["kv_splice.expand"][own] if "kv_splice.expand" in p else compress.T
    z = F.linear(c * sigma + shift, compress)
    return (F.linear(z, expand) - shift) / sigma


def mla_query(cfg, p, x, c):
    """q_n and q_r, unrotated: [B,n,T,d_n], [B,n,T,d_r]."""
    heads, rope = cfg.i("N_HEAD"), cfg.i("MLA_ROPE_DIM")
    if cfg.s("MLA_QUERY") == "direct":
        q = linear(p, "q_proj", x)
    elif cfg.s("MLA_QUERY") == "latent":
        q = linear(p, "q_b_proj", rms_norm(cfg, p, "q_a_layernorm", linear(p, "q_a_proj", x)))
    else:
        q = linear(p, "q_b_proj", c)
    q = split_heads(q, heads)
    if "q_rope_proj.weight" in p:
        return q, split_heads(linear(p, "q_rope_proj", x), heads)
    return q.split([q.shape[-1] - rope, rope], dim=-1)


def mla(cfg, p, x, taps, wanted):
    heads, halves = cfg.i("N_HEAD"), 2 if cfg.y("MLA_KV2") else 1
    r = cfg.i("MLA_LATENT_DIM")
    raw = linear(p, "kv_a_proj", x).split(r, dim=-1)
    parts = [slice(h * r, (h + 1) * r) for h in range(halves)]
    c = [rms_norm(cfg, p, "kv_a_layernorm", raw[h], parts[h]) for h in range(halves)]
    out = {}
    if "kv_splice.scale" in p:
        spliced = [splice(p, c[h], h) for h in range(halves)]
        errors = [((a - b).square().sum(-1) / (a.square().sum(-1) + 1e-12)).mean()
                  for a, b in zip(c, spliced)]
        out["AUX"] = ("MLA_KVSPLICE_RECON", sum(errors) / halves)
        c = spliced
    q_n, q_r = mla_query(cfg, p, x, c[0])
    up, bias = p["kv_b_proj.weight"], p.get("kv_b_proj.bias")
    up = up.view(heads, -1, r)
    d_n = q_n.shape[-1]
    keys = c[0].unsqueeze(1) @ up[:, :d_n].transpose(1, 2)
    values = c[-1].unsqueeze(1) @ up[:, d_n:].transpose(1, 2)
    if bias is not None:
        bias = bias.view(heads, 1, -1)
        keys, values = keys + bias[..., :d_n], values + bias[..., d_n:]
    if cfg.y("MLA_ROPE_FULL"):
        q_n, keys = rotate(cfg, q_n), rotate(cfg, keys)
    scores = q_n @ keys.transpose(2, 3)
    if q_r.shape[-1]:
        key = rotate(cfg, linear(p, "k_rope_proj", x).unsqueeze(1))
        scores = scores + rotate(cfg, q_r) @ key.transpose(2, 3)
    probs = causal_probs(scores / math.sqrt(d_n + q_r.shape[-1]))
    return linear(p, "o_proj", heads_out(probs, values)), out


# ---- ra_mla: latent attention ---------------------------------------------------


def reciprocal_band(cfg, qt, k):
    """(alpha_ra / sqrt L) <q~_u, k_t> for 0 <= t-u <= W, else 0: [B,H,T,T]."""
    t = k.shape[1]
    swapped = k.unsqueeze(1) @ qt.transpose(2, 3)            # [t,u] = <k_t, q~_u>
    band = torch.ones(t, t, dtype=torch.bool).tril().triu(-cfg.i("RA_MLA_RA_WINDOW"))
    swapped = swapped * (cfg.f("RA_MLA_RA_ALPHA") / math.sqrt(k.shape[-1]))
    return swapped.masked_fill(~band, 0.0)


def ra_mla(cfg, p, x, taps, wanted):
    """Latent attention; reads HEAD_GATE and LATENT_MIX, writes ROUTE and LATENT."""
    q = split_heads(linear(p, "q_proj", x), cfg.i("N_HEAD"))
    k, v = linear(p, "k_down", x), linear(p, "v_down", x)    # [B,T,L]
    gamma, mix = taps.get("HEAD_GATE"), taps.get("LATENT_MIX")
    if mix is not None:
        k = k + cfg.f("RA_MLA_MLP_RECIP_ALPHA") * mix
    # one [D,L] or [L,D] for all heads broadcasts over the head dimension
    qt = q @ p["q_to_latent"]                                # [B,H,T,L]
    values = v.unsqueeze(1) @ p["v_up"]                      # [B,H or 1,T,D]
    scores = qt @ k.transpose(1, 2).unsqueeze(1) / math.sqrt(k.shape[-1])
    if cfg.f("RA_MLA_RA_ALPHA") > 0:
        scores = scores + reciprocal_band(cfg, qt, k)
    probs = causal_probs(scores)
    y = linear(p, "out_proj", heads_out(probs, values, gamma))
    return y, {"ROUTE": (probs, gamma), "LATENT": k}


# ---- linear RNNs: gla, mfa_gla, mamba2 ----------------------------------------------


def recurrence(q, k, v, alpha, scale):
    """S_t = diag(alpha_t) S_(t-1) + k_t v_t^T, o_t = scale S_t^T q_t, position by position:
    q, k [B,n,T,K], v [B,n,T,V], alpha [B,n,T,K or 1] -> [B,n,T,V]."""
    state, out = 0, []
    for t in range(q.shape[2]):
        state = alpha[:, :, t, :, None] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append(scale * (state * q[:, :, t, :, None]).sum(2))
    return torch.stack(out, 2)


def short_conv(p, name, x):
    """Causal, depthwise, SiLU: [B,T,c]; x itself where there is no such tensor."""
    weight = p.get(name + ".weight")                         # [c,1,w]
    if weight is None:
        return x
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, p.get(name + ".bias"), groups=x.shape[-1])) \
        .transpose(1, 2)


def gla_decay(cfg, p, x, heads):
    """alpha [B,n,T,K or 1]; n may be 1."""
    kind = cfg.s("GLA_DECAY")
    if kind in ("fixed", "none"):
        fixed = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=x.dtype))
        alpha = fixed if kind == "fixed" else torch.ones_like(fixed)
        return alpha.view(1, heads, 1, 1).expand(x.shape[0], heads, x.shape[1], 1)
    low = "gk_proj.0.weight" in p
    z = linear(p, "gk_proj.1", F.linear(x, p["gk_proj.0.weight"])) if low else \
        linear(p, "gk_proj", x)
    if kind == "scalar":
        groups = z.shape[-1]
    else:
        groups = 1 if cfg.y("MFA_SHARED_DECAY") and "S_k.weight" in p else heads
    return split_heads((F.logsigmoid(z) / cfg.f("GLA_GATE_TAU")).exp(), groups)


def gla_out(cfg, p, x, q, k, v):
    """From queries, keys and values of heads, [B,n or 1,T,.], to y."""
    heads = cfg.i("N_HEAD")
    if cfg.y("GLA_K_NORM"):
        k = k / (k.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    scale = q.shape[-1] ** -0.5 if cfg.y("GLA_Q_SCALE") else 1
    alpha = gla_decay(cfg, p, x, heads)
    q, k, v, alpha = (y.expand(-1, heads, -1, -1) for y in (q, k, v, alpha))
    o = rms_norm(cfg, p, "g_norm", recurrence(q, k, v, alpha, scale))
    o = o.transpose(1, 2).flatten(2)                         # [B,T,n V]
    if "g_proj.weight" in p:
        o = o * F.silu(linear(p, "g_proj", x))
    return linear(p, "o_proj", o), {}


def gla(cfg, p, x, taps, wanted):
    heads = cfg.i("N_HEAD")
    return gla_out(cfg, p, x, *(
        split_heads(short_conv(p, f"{s}_conv1d", linear(p, f"{s}_proj", x)), heads)
        for s in "qkv"))


def mfa_gla(cfg, p, x, taps, wanted):
    """One key for all heads; queries, and values where V_c is, mapped by head."""
    q, k, v = (short_conv(p, f"{s}_conv1d", linear(p, f"S_{s}", x)).unsqueeze(1) for s in "qkv")
    return gla_out(cfg, p, x, q @ p["Q_c"], k, v @ p["V_c"] if "V_c" in p else v)


def mamba2(cfg, p, x, taps, wanted):
    """Selective state space."""
    heads, groups = cfg.i("MAMBA2_NUM_HEADS"), cfg.i("MAMBA2_N_GROUPS")
    inner, wide = len(p["norm.weight"]), groups * cfg.i("MAMBA2_STATE_SIZE")
    z, mixed, dt = linear(p, "in_proj", x).split([inner, inner + 2 * wide, heads], dim=-1)
    u, b, c = short_conv(p, "conv1d", mixed).split([inner, wide, wide], dim=-1)
    dt = F.softplus(dt + p["dt_bias"])
    u = split_heads(u, heads)                                # [B,H,T,P]
    b, c = (split_heads(y, groups).repeat_interleave(heads // groups, dim=1) for y in (b, c))
    step = dt.transpose(1, 2).unsqueeze(-1)                  # [B,H,T,1]
    alpha = (-step * p["A_log"].exp().view(heads, 1, 1)).exp()
    y = recurrence(c, b, step * u, alpha, 1) + p["D"].view(heads, 1, 1) * u
    y = (y.transpose(1, 2).flatten(2) * F.silu(z)).unflatten(-1, (groups, -1))
    y = y * (y.square().mean(-1, keepdim=True) + cfg.f("NORM_EPSILON")).rsqrt()
    return linear(p, "out_proj", y.flatten(2) * p["norm.weight"]), {}


# ---- recip: an MLP that talks back ----------------------------------------------


def routing_rows(probs, gamma):
    """R_h = gamma P of one layer: [B,H,T,T], gamma [B,T,H] or None."""
    return probs if gamma is None else probs * gamma.transpose(1, 2).unsqueeze(-1)


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


def cross_token(cfg, p, h, route):
    """Mechanism 2: h + alpha_c (R^ h) cross_proj^T."""
    rows = routing_rows(*route)
    if cfg.y("RA_MLA_MLP_SPARSE_HEAD_AVERAGE"):
        mixed = sparsify(cfg, rows.mean(1, keepdim=True)).squeeze(1) @ h
    else:
        mixed = sparsify(cfg, rows) @ split_heads(h, cfg.i("N_HEAD"))
        mixed = mixed.transpose(1, 2).reshape(h.shape)
    return h + cfg.f("RA_MLA_MLP_CROSS_ALPHA") * linear(p, "cross_proj", mixed)


def latent_to_hidden(cfg, p, a, f):
    """Mechanism 3, A(a): [B,T,L] -> [B,T,F]."""
    mode = cfg.s("RA_MLA_MLP_TYING_MODE")
    if mode == "untied":
        return linear(p, "attn_to_mlp", a)
    if mode == "tied_transpose":
        return F.linear(a, p["coupler"])
    scale = p["attn_scale"].repeat_interleave(f // cfg.i("N_HEAD"))
    return scale * a.repeat(1, 1, f // a.shape[-1])


def hidden_to_latent(cfg, p, h0):
    """Mechanism 3, M(h0): [B,T,F] -> [B,T,L]."""
    mode = cfg.s("RA_MLA_MLP_TYING_MODE")
    if mode == "untied":
        return linear(p, "mlp_to_attn", linear(p, "mlp_down", h0))
    if mode == "tied_transpose":
        return h0 @ p["coupler"]
    b, t, f = h0.shape
    latent = cfg.i("RA_MLA_LATENT_DIM")
    scale = p["mlp_scale"].repeat_interleave(f // cfg.i("N_HEAD"))
    return (scale * h0).view(b, t, f // latent, latent).sum(2) * (latent / f)


def head_gate(cfg, p, h):
    """Mechanism 1: gamma [B,T,H] for the next layer's heads."""
    z = linear(p, "gate_proj", h)                            # [B,T,G]
    pool = cfg.s("RA_MLA_MLP_GATE_POOL")
    if pool == "causal":
        z = z.cumsum(1) / positions(z.shape[1], z.dtype)
    elif pool == "sequence":
        z = z.mean(1, keepdim=True).expand_as(z)
    g = torch.sigmoid(linear(p, "gate_to_heads", z))
    alpha = cfg.f("RA_MLA_MLP_GATE_ALPHA")
    return (1 - alpha) + alpha * g


def recip(cfg, p, x, taps, wanted):
    """MLP with the mechanisms that are on; reads ROUTE and LATENT, writes HEAD_GATE
    and LATENT_MIX."""
    h, out = hidden(p, x), {}
    if "LATENT_MIX" in wanted:
        out["LATENT_MIX"] = hidden_to_latent(cfg, p, h)
    if taps.get("LATENT") is not None:
        a = latent_to_hidden(cfg, p, taps["LATENT"], h.shape[-1])
        h = h + cfg.f("RA_MLA_MLP_RECIP_ALPHA") * a
    if taps.get("ROUTE") is not None:
        h = cross_token(cfg, p, h, taps["ROUTE"])
    if "HEAD_GATE" in wanted:
        out["HEAD_GATE"] = head_gate(cfg, p, h)
    return linear(p, "c_proj", h), out


MIXERS = {f.__name__: f for f in (mha, mlp, mlp_splice, swiglu, moe, mla, gla, mfa_gla, mamba2,
                                  ra_mla, recip)}


# ---- the stack -------------------------------------------------------------------


def detach(value):
    """A tap's value without its gradient; a tuple describes."""
    if isinstance(value, tuple):
        return tuple(detach(v) for v in value)
    return None if value is None else value.detach()


class Model:
    """One configuration; its weights are given to forward()."""

    def __init__(self, cfg, plan):
        """@cfg: DotConfig; @plan: what `tenon plan --json` says of the same binary."""
        self.cfg = cfg
        self.subs = plan["sublayers"]
        self.detached = {tap["name"] for tap in plan["taps"] if tap["detached"]}
        self.shapes = {t["name"]: tuple(t["shape"])
                       for part in [plan["stack"], *self.subs] for t in part["tensors"]}
        prefixes = {sub[key] for sub in self.subs for key in ("norm", "prefix")} | {"ln_f."}
        self.below = {prefix: [n for n in self.shapes if prefix and n.startswith(prefix)]
                      for prefix in prefixes}

    def leaves(self, p, prefix):
        """The tensors below a prefix, by their leaf names."""
        return {name[len(prefix):]: p[name] for name in self.below[prefix]}

    def norm(self, p, x):
        """LayerNorm, or without a bias RMSNorm."""
        weight, epsilon = p["weight"], self.cfg.f("NORM_EPSILON")
        if "bias" in p:
            return F.layer_norm(x, weight.shape, weight, p["bias"], epsilon)
        return weight * x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()

    def read(self, sub, written):
        """{tap: value} for a sub-layer; @written: {(writer, tap): value}."""
        out = {}
        for tap, writer in sub["reads"].items():
            value = written.get((writer, tap))
            out[tap] = detach(value) if tap in self.detached else value
        return out

    def forward(self, p, inputs, targets, mask_padding=True):
        """Logits [B,T,V], mean loss and auxiliary loss (None: there is none); inputs and targets [B,T], -1 is
        not scored.

        Without @mask_padding the padded columns compete, as they do in code that
        rounds the vocabulary up for speed.
        """
        x = p["wte.weight"][inputs]
        if "wpe.weight" in self.shapes:
            x = x + p["wpe.weight"][: inputs.shape[1]]
        written, aux = {}, {}
        for number, sub in enumerate(self.subs):
            y, values = MIXERS[sub["mixer"]](
                self.cfg, self.leaves(p, sub["prefix"]),
                self.norm(self.leaves(p, sub["norm"]), x), self.read(sub, written),
                sub["writes"])
            if "AUX" in values:
                symbol, value = values.pop("AUX")
                aux.setdefault(symbol, []).append(value)
            written.update({(number, tap): value for tap, value in values.items()})
            x = x + y
        head = "lm_head.weight" if "lm_head.weight" in self.shapes else "wte.weight"
        logits = F.linear(self.norm(self.leaves(p, "ln_f."), x), p[head])
        if mask_padding:
            pad = torch.arange(logits.shape[-1]) >= self.cfg.i("VOCAB_SIZE")
            logits = logits.masked_fill(pad, -math.inf)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        weighted = [self.cfg.f(symbol) * sum(v) / len(v) for symbol, v in aux.items()
                    if self.cfg.f(symbol)]
        return logits, loss, sum(weighted) if weighted else None
