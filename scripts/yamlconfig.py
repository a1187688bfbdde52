#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Print the defconfig that a training guide's YAML file describes.

    yamlconfig.py FILE.yaml

Keys that mean nothing here are refused with their line; what is absent gets the
guide's defaults. Exit status 2 where the file is refused.
"""
import re
import sys

try:
    import yaml
except ImportError:
    sys.exit("yamlconfig.py: this Python has no PyYAML; type: sh scripts/setup.sh yaml")

WHOLE, REAL, SWITCH = r"[0-9]+", r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?", "true|false"
LAYERS = f"{WHOLE}(,{WHOLE})*"
WORDS = {WHOLE: "a whole number", REAL: "a number", SWITCH: "true or false",
         LAYERS: "a list of layers"}

# Of Mamba-2, besides its layers: the keys that are symbols in lower case.
MAMBA2 = tuple("mamba2_" + name for name in ("num_heads", "head_dim", "state_size", "n_groups",
                                             "conv_kernel", "expand", "chunk_size"))

# section -> key -> (form, the guide's default; None: it depends)
KEYS = {
    "model": {
        "hidden_size": (WHOLE, "512"), "num_layers": (WHOLE, "8"), "num_heads": (WHOLE, "8"),
        "kv_heads": (WHOLE, None), "vocab_size": (WHOLE, "128354"),
        "max_seq_len": (WHOLE, "2048"), "rope_theta": (REAL, "10000"),
        "intermediate_size": (WHOLE, None), "kv_latent_dim": (WHOLE, None),
        "q_latent_dim": (WHOLE, None), "d_rope": (WHOLE, None), "num_experts": (WHOLE, None),
        "experts_per_tok": (WHOLE, None), "shared_expert_enabled": (SWITCH, None),
        "mamba_layers": (LAYERS, None), **dict.fromkeys(MAMBA2, (WHOLE, None)),
    },
    "trainer": {
        "learning_rate": (REAL, "3e-4"), "batch_size": (WHOLE, "2"), "max_steps": (WHOLE, "5000"),
        "load_balance_alpha": (REAL, None),
    },
}
# key -> the key without which it has no meaning
NEEDS = {"q_latent_dim": "kv_latent_dim", "kv_latent_dim": "d_rope", "d_rope": "kv_latent_dim",
         "experts_per_tok": "num_experts", "shared_expert_enabled": "num_experts",
         **dict.fromkeys(MAMBA2, "mamba_layers")}


class Refused(Exception):
    """Lines for the user."""


def pairs(node, where):
    """[(key, line, value node)] of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise Refused(f"{where(node)}: not a mapping of keys to values")
    return [(key.value, key, value) for key, value in node.value]


def text(node):
    """A value as one word, of a list with commas; None where it is neither."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if all(isinstance(part, yaml.ScalarNode) for part in parts):
        return ",".join(part.value for part in parts)
    return None


def problem(section, key, value):
    """What is wrong with one key, or None."""
    if key not in KEYS[section]:
        return f"no such key; {section} has {', '.join(KEYS[section])}"
    form = KEYS[section][key][0]
    return None if value and re.fullmatch(form, value) else f"not {WORDS[form]}"


def misfit(given):
    """Why heads of Mamba-2 do not fit the width, or None."""
    heads, width = (int(given.get("mamba2_" + k, 0)) for k in ("num_heads", "head_dim"))
    expand = int(given.get("mamba2_expand", 2))
    hidden = int(given.get("hidden_size", KEYS["model"]["hidden_size"][1]))
    if not heads * width or heads * width == expand * hidden:
        return None
    return (f"{heads} heads of {width} do not fit a width of {hidden} (they fit "
            f"{heads * width // max(expand, 1)})")


def read(path):
    """{key: text} of both sections."""
    def where(node):
        return f"{path}:{node.start_mark.line + 1}"

    with open(path, encoding="utf-8") as file:
        root = yaml.compose(file, Loader=yaml.SafeLoader)
    wrong, values, lines = [], {}, {}
    for section, at, node in pairs(root, where) if root else ():
        if section not in KEYS:
            wrong.append(f"{where(at)}: {section}: no such section; there are {', '.join(KEYS)}")
            continue
        for key, place, value in pairs(node, where):
            word = text(value)
            what = "given twice" if key in values else problem(section, key, word)
            if what:
                shown = f": {word}" if word else ""
                wrong.append(f"{where(place)}: {section}.{key}{shown}: {what}")
            else:
                values[key], lines[key] = word, where(place)
    wrong += [f"{lines[key]}: {key} has no meaning without {other}; add it, or drop the line"
              for key, other in NEEDS.items() if key in values and other not in values]
    if misfit(values):
        wrong.append(f"{lines['mamba2_num_heads']}: {misfit(values)}")
    if wrong:
        raise Refused("\n".join(wrong))
    for key, other in (("kv_heads", "kv_latent_dim"), ("load_balance_alpha", None)):
        if key in values and (other in values or not other and "num_experts" not in values):
            beside = f"beside {other}" if other else "without num_experts"
            print(f"note: {lines[key]}: {key} has no effect {beside}", file=sys.stderr)
    return values


def defconfig(given):
    """The lines of a defconfig."""
    def get(key):
        default = next(s[key][1] for s in KEYS.values() if key in s)
        return given.get(key, default)

    latent, experts = "kv_latent_dim" in given, "num_experts" in given
    out = {
        "MODEL_MLA" if latent else "MODEL_LLAMA": "y", "GPT2_MODEL_CUSTOM": "y",
        "N_EMBD": get("hidden_size"), "N_LAYER": get("num_layers"), "N_HEAD": get("num_heads"),
        "VOCAB_SIZE": get("vocab_size"), "BLOCK_SIZE": get("max_seq_len"),
        "ROPE_THETA": f'"{get("rope_theta")}"',
        "INTERMEDIATE_SIZE": get("intermediate_size") or 4 * int(get("hidden_size")),
        "BATCH_SIZE": get("batch_size"), "GRADIENT_ACCUMULATION": "1",
        "MAX_ITERS": get("max_steps"), "LEARNING_RATE": f'"{get("learning_rate")}"',
        "LR_CONSTANT": "y", "WARMUP_STEPS": "0", "OPTIM_ADAMW": "y", "DATA_TREE": "y",
    }
    if latent:
        out.update(MLA_LATENT_DIM=get("kv_latent_dim"), MLA_ROPE_DIM=get("d_rope"))
    elif "kv_heads" in given:
        out.update(KV_HEADS=get("kv_heads"))
    if latent and "q_latent_dim" in given:
        out.update(MLA_QUERY='"latent"', MLA_Q_LATENT_DIM=get("q_latent_dim"),
                   MLA_ROPE_FROM='"x"')
    if experts:
        out.update(BLOCK='"mla moe"' if latent else '"mha moe"', MLP_SWIGLU="n", MLP_MOE="y",
                   NUM_EXPERTS=get("num_experts"),
                   EXPERTS_PER_TOK=get("experts_per_tok") or "2",
                   SHARED_EXPERTS=int(get("shared_expert_enabled") == "true"),
                   LOAD_BALANCE_ALPHA=f'"{get("load_balance_alpha") or "0.01"}"')
    if "mamba_layers" in given:
        out.update(MAMBA_LAYERS=f'"{given["mamba_layers"]}"')
        out.update((key.upper(), given[key]) for key in MAMBA2 if key in given)
    return "".join(f"CONFIG_{name}={value}\n" for name, value in out.items())


def main(path):
    try:
        sys.stdout.write(f"# From {path}\n{defconfig(read(path))}")
    except Refused as error:
        print("\n".join(f"error: {line}" for line in str(error).split("\n")), file=sys.stderr)
        return 2
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        print(f"error: {path}:{line}: not YAML: {error.problem or error.context}", file=sys.stderr)
        return 2
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: {path}: {getattr(error, 'strerror', None) or 'not a text file'}",
              file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
