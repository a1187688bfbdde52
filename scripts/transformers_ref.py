#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Check the logits of a `tenon dump` bundle against the transformers library's own classes.

    transformers_ref.py [--tolerance 1e-6] BUNDLE.safetensors...

Blocks of mla with swiglu or moe are its DeepseekV2ForCausalLM, of mha with swiglu its
LlamaForCausalLM, of mha with moe its MixtralForCausalLM. The weights of the bundle are given
to that class under its names, and logits over the real vocabulary are compared: the largest
absolute difference over the largest absolute logit. The library computes angles, norms and
softmax in float whatever the weights are, so agreement is that of float. Exit status: 0 all
within the tolerance, 1 not, 2 unusable input.
"""
import argparse
import sys

try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(f"transformers_ref.py: {error}; type: sh scripts/setup.sh transformers, then run this "
             "with build/torch/bin/python")

from dotconfig import DotConfig
from torch_ref import BundleError, read_safetensors, tokens

# Float's round-off through a few layers is about 1e-7; a wrong row is visible at 1e-4.
TOLERANCE = 1e-6


def needs(cfg, **values):
    """The library's classes know one value of some symbols."""
    for symbol, value in values.items():
        if getattr(cfg, "y" if isinstance(value, bool) else "s")(symbol) != value:
            raise BundleError(f"CONFIG_{symbol} has no counterpart in the library unless it is "
                              f"{'ny'[value] if isinstance(value, bool) else repr(value)}")


def blocks(cfg):
    """The mixers of each layer: [(attention, mlp)]."""
    alt = {int(i) for i in cfg.s("BLOCK_ALT_LAYERS").split(",") if i}
    return [tuple(cfg.s("BLOCK_ALT" if i in alt else "BLOCK").split())
            for i in range(cfg.i("N_LAYER"))]


def common(cfg):
    needs(cfg, LEARNED_POSITIONS=False, LINEAR_BIAS=False, NORM_RMSNORM=True)
    return {
        "vocab_size": cfg.i("VOCAB_SIZE"), "hidden_size": cfg.i("N_EMBD"),
        "num_hidden_layers": cfg.i("N_LAYER"), "num_attention_heads": cfg.i("N_HEAD"),
        "intermediate_size": cfg.i("INTERMEDIATE_SIZE") or 4 * cfg.i("N_EMBD"),
        "max_position_embeddings": cfg.i("BLOCK_SIZE"), "rms_norm_eps": cfg.f("NORM_EPSILON"),
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.f("ROPE_THETA")},
        "tie_word_embeddings": cfg.y("HEAD_TIED"), "attn_implementation": "eager",
        "experts_implementation": "eager",
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }


def expert_size(cfg):
    return cfg.i("EXPERT_SIZE") or common(cfg)["intermediate_size"]


# ---- one class each: (model, its name for each tensor of ours) --------------------------


def packed_experts(p, leaf):
    """gate and up one below the other in each expert."""
    return torch.cat([p[leaf + "gate_proj.weight"], p[leaf + "up_proj.weight"]], dim=1)


def swiglu_names(p, ours, theirs):
    return {f"{theirs}{n}_proj.weight": p[f"{ours}{n}_proj.weight"] for n in ("gate", "up", "down")}


def grouped_attention(cfg, p, ours, theirs):
    """c_attn's rows are those of q, k and v."""
    c, d = cfg.i("N_EMBD"), cfg.i("N_EMBD") // cfg.i("N_HEAD")
    groups = cfg.i("KV_HEADS") or cfg.i("N_HEAD")
    q, k, v = p[ours + "c_attn.weight"].split([c, groups * d, groups * d])
    return {theirs + "q_proj.weight": q, theirs + "k_proj.weight": k, theirs + "v_proj.weight": v,
            theirs + "o_proj.weight": p[ours + "c_proj.weight"]}


def llama(cfg):
    needs(cfg, MHA_ROPE=True)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        num_key_value_heads=cfg.i("KV_HEADS") or cfg.i("N_HEAD"), **common(cfg)))


def llama_layer(cfg, p, ours, theirs, _):
    return {**grouped_attention(cfg, p, ours + "attn.", theirs + "self_attn."),
            **swiglu_names(p, ours + "mlp.", theirs + "mlp.")}


def mixtral(cfg):
    needs(cfg, MHA_ROPE=True, SHARED_EXPERTS="0", MOE_BIAS_BALANCE=False)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        num_key_value_heads=cfg.i("KV_HEADS") or cfg.i("N_HEAD"),
        num_local_experts=cfg.i("NUM_EXPERTS"), num_experts_per_tok=cfg.i("EXPERTS_PER_TOK"),
        **{**common(cfg), "intermediate_size": expert_size(cfg)}))


def mixtral_layer(cfg, p, ours, theirs, _):
    return {**grouped_attention(cfg, p, ours + "attn.", theirs + "self_attn."),
            theirs + "mlp.gate.weight": p[ours + "mlp.router.weight"],
            theirs + "mlp.experts.gate_up_proj": packed_experts(p, ours + "mlp.experts."),
            theirs + "mlp.experts.down_proj": p[ours + "mlp.experts.down_proj.weight"]}


def deepseek(cfg):
    needs(cfg, MLA_KV2=False, MLA_KVSPLICE=False, MLA_ROPE_FULL=False, MLA_LATENT_NORM=True)
    latent, moe = cfg.s("MLA_QUERY") == "latent", [mlp for _, mlp in blocks(cfg)]
    if cfg.s("MLA_QUERY") == "shared" or latent and cfg.s("MLA_ROPE_FROM") != "latent":
        raise BundleError("DeepSeek-V2 has queries MLA_QUERY=\"direct\", or \"latent\" with "
                          "MLA_ROPE_FROM=\"latent\"")
    if cfg.f("NORM_EPSILON") != 1e-6:
        raise BundleError("the library's norms of latents have CONFIG_NORM_EPSILON=\"1e-6\"")
    if moe != sorted(moe, key="moe".__eq__):
        raise BundleError("DeepSeek-V2 has its dense layers first")
    if "moe" in moe and cfg.i("EXPERTS_PER_TOK") != cfg.i("NUM_EXPERTS"):
        raise BundleError("the library's DeepSeek-V2 does not divide by the sum of the chosen "
                          "weights, so routing is the same where every expert is chosen")
    head = cfg.i("N_EMBD") // cfg.i("N_HEAD")
    return transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(
        kv_lora_rank=cfg.i("MLA_LATENT_DIM"), q_lora_rank=cfg.i("MLA_Q_LATENT_DIM") if latent else None,
        qk_rope_head_dim=cfg.i("MLA_ROPE_DIM"), qk_nope_head_dim=cfg.i("MLA_NOPE_DIM") or head,
        v_head_dim=cfg.i("MLA_V_DIM") or head, first_k_dense_replace=moe.count("swiglu"),
        **({"n_routed_experts": cfg.i("NUM_EXPERTS"), "n_shared_experts": cfg.i("SHARED_EXPERTS"),
            "num_experts_per_tok": cfg.i("EXPERTS_PER_TOK"),
            "moe_intermediate_size": expert_size(cfg)} if "moe" in moe else {}), **common(cfg)))


def interleaved(rows, d):
    """Our rows i and i + d/2 of each group of @d are theirs 2i and 2i + 1."""
    return rows.unflatten(0, (-1, 2, d // 2)).transpose(1, 2).reshape(rows.shape)


def query_rows(cfg, rows):
    """The rotated part of each head of a query's product, interleaved."""
    heads, d = cfg.i("N_HEAD"), cfg.i("MLA_ROPE_DIM")
    plain, turned = rows.unflatten(0, (heads, -1)).split([rows.shape[0] // heads - d, d], dim=1)
    turned = interleaved(turned.flatten(0, 1), d).unflatten(0, (heads, d))
    return torch.cat([plain, turned], dim=1).flatten(0, 1)


def deepseek_layer(cfg, p, ours, theirs, mlp):
    attn, own, d = ours + "attn.", theirs + "self_attn.", cfg.i("MLA_ROPE_DIM")
    out = {own + f"{n}.weight": p[attn + f"{n}.weight"]
           for n in ("kv_a_layernorm", "kv_b_proj", "o_proj")}
    out[own + "kv_a_proj_with_mqa.weight"] = torch.cat(
        [p[attn + "kv_a_proj.weight"], interleaved(p[attn + "k_rope_proj.weight"], d)])
    for n in ("q_proj", "q_b_proj"):
        if f"{attn}{n}.weight" in p:
            out[f"{own}{n}.weight"] = query_rows(cfg, p[f"{attn}{n}.weight"])
    for n in ("q_a_proj", "q_a_layernorm"):
        if f"{attn}{n}.weight" in p:
            out[f"{own}{n}.weight"] = p[f"{attn}{n}.weight"]
    mlp_of, theirs_of = ours + "mlp.", theirs + "mlp."
    if mlp == "swiglu":
        return {**out, **swiglu_names(p, mlp_of, theirs_of)}
    return {**out, theirs_of + "gate.weight": p[mlp_of + "router.weight"],
            theirs_of + "experts.gate_up_proj": packed_experts(p, mlp_of + "experts."),
            theirs_of + "experts.down_proj": p[mlp_of + "experts.down_proj.weight"],
            **swiglu_names(p, mlp_of + "shared_experts.", theirs_of + "shared_experts.")}


# The mixers of the last layer (the first may be dense): model, tensors of a layer
CLASSES = {("mha", "swiglu"): (llama, llama_layer), ("mha", "moe"): (mixtral, mixtral_layer),
           ("mla", "swiglu"): (deepseek, deepseek_layer), ("mla", "moe"): (deepseek, deepseek_layer)}


# ---- comparison ------------------------------------------------------------------------


def load(cfg, p):
    """The library's model with the bundle's weights, in float64."""
    layers = blocks(cfg)
    if layers[-1] not in CLASSES or len({attention for attention, _ in layers}) > 1:
        raise BundleError(f"no class of the library has blocks of {' '.join(layers[-1])}")
    make, layer = CLASSES[layers[-1]]
    vocab = cfg.i("VOCAB_SIZE")
    out = {"model.embed_tokens.weight": p["wte.weight"][:vocab],
           "model.norm.weight": p["ln_f.weight"],
           "lm_head.weight": p["wte.weight" if cfg.y("HEAD_TIED") else "lm_head.weight"][:vocab]}
    for i, (_, mlp) in enumerate(layers):
        ours, theirs = f"h.{i}.", f"model.layers.{i}."
        out[theirs + "input_layernorm.weight"] = p[ours + "ln_1.weight"]
        out[theirs + "post_attention_layernorm.weight"] = p[ours + "ln_2.weight"]
        out.update(layer(cfg, p, ours, theirs, mlp))
    model = make(cfg).double().eval()
    model.load_state_dict(out, strict=True)
    return model


def compare(path, tolerance):
    """Whether the logits of a bundle are the library's."""
    tensors, meta = read_safetensors(path)
    if "config" not in meta:
        raise BundleError(f"{path}: no config in __metadata__")
    cfg = DotConfig(meta["config"])
    p = {name[6:]: x.double() for name, x in tensors.items() if name.startswith("param.")}
    with torch.no_grad():
        model = load(cfg, p)
        want = model(tokens(tensors)[0], use_cache=False).logits
    got = tensors["logits"].double()[..., :want.shape[-1]]
    gap = ((got - want).abs().max() / want.abs().max()).item()
    print(f"{path}: {type(model).__name__} of transformers {transformers.__version__}: largest "
          f"relative difference of logits {gap:.3g}")
    return gap <= tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="+")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    args = parser.parse_args()
    try:
        return 0 if all([compare(path, args.tolerance) for path in args.bundle]) else 1
    except (OSError, BundleError, KeyError, ValueError, RuntimeError) as error:
        print(f"transformers_ref.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
