#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tenon dump: what is in a bundle, that it is whole or not there, and what is refused."""
import os
import resource
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402
from bundle import bundle, floats, tokens    # noqa: E402

B, T, VOCAB = 2, 16, 256     # capacities of training.SMALL


def dump(binary, tok, out, *args, b=B, length=T, **kw):
    return t.tenon(binary, "dump", "--tokens", tok, "--out", out, "--batch", b, "--length",
                   length, *args, **kw)


def test_contents(binary, d):
    ids = tokens(f"{d}/tok", 1, 9, VOCAB)
    done = dump(binary, f"{d}/tok", f"{d}/out", "--init", 3, b=1, length=9)
    t.ok(done.returncode == 0 and sorted(os.listdir(d)) == ["out", "tok"],
         "smaller_batch_gives_one_file", t.said(done))
    header, data, meta = bundle(f"{d}/out")
    t.ok(header["tokens"]["dtype"] == "I32" and header["tokens"]["shape"] == [1, 10] and
         list(struct.unpack("<10i", data["tokens"])) == ids, "tokens_are_the_file's")
    t.ok(header["logits"]["shape"] == [1, 9, VOCAB] and header["loss"]["shape"] == [1] and
         header["logits"]["dtype"] == "F32", "logits_and_loss_have_their_shape")
    params = {n[6:]: e["shape"] for n, e in header.items() if n.startswith("param.")}
    grads = {n[5:]: e["shape"] for n, e in header.items() if n.startswith("grad.")}
    t.ok(params == grads and len(params) > 20 and
         len(header) == 2 * len(params) + 3, "every_parameter_has_a_gradient")
    t.ok(meta["config"] == t.tenon(binary, "config").stdout and
         "CONFIG_N_EMBD=16" in meta["config"], "config_is_in_the_metadata")
    t.ok(params["h.0.attn.q_to_latent"] == [2, 8, 8] and "h.0.mlp.gate_proj.weight" in params and
         "h.1.mlp.gate_proj.weight" not in params, "unread_tensors_of_the_last_layer_are_absent")
    dead = [n for n in grads if not any(floats(data["grad." + n]))]
    t.ok(not dead, "every_gradient_is_alive", dead)


def test_targets(binary, d):
    """--targets: inputs and targets apart; those that are -1 are not scored."""
    ids = tokens(f"{d}/tok", B, T, VOCAB)
    rows = [ids[i * (T + 1):(i + 1) * (T + 1)] for i in range(B)]
    inputs = [x for row in rows for x in row[:-1]]
    behind = [x for row in rows for x in row[1:]]
    some = [x if i % 3 else -1 for i, x in enumerate(behind)]
    rest = [-1 if i % 3 else x for i, x in enumerate(behind)]
    for name, targets in (("all", behind), ("some", some), ("rest", rest),
                          ("none", [-1] * (B * T))):
        t.write(struct.pack(f"<{2 * B * T}i", *inputs, *targets), d, name + ".in")
        done = t.tenon(binary, "dump", "--targets", f"{d}/{name}.in", "--out", f"{d}/{name}",
                       "--init", 3, "--batch", B, "--length", T)
        t.ok(done.returncode == 0, f"targets_{name}_are_taken", t.said(done))
    dump(binary, f"{d}/tok", f"{d}/whole", "--init", 3)
    whole, (header, data, _) = bundle(f"{d}/whole")[1], bundle(f"{d}/some")
    t.ok("tokens" not in header and header["inputs"]["shape"] == header["targets"]["shape"] ==
         [B, T] and list(struct.unpack(f"<{B * T}i", data["inputs"])) == inputs and
         list(struct.unpack(f"<{B * T}i", data["targets"])) == some,
         "inputs_and_targets_are_the_file's")
    every = bundle(f"{d}/all")[1]
    t.ok(all(every[n] == x for n, x in whole.items() if n != "tokens"),
         "the_same_batch_gives_the_same_numbers")
    losses = [floats(bundle(f"{d}/{n}")[1]["loss"])[0] for n in ("all", "some", "rest", "none")]
    n, of = sum(x >= 0 for x in some), B * T
    mean = (losses[1] * n + losses[2] * (of - n)) / of
    t.ok(abs(mean - losses[0]) < 1e-6 * losses[0] and losses[1] != losses[2] and losses[3] == 0,
         "loss_is_the_mean_of_scored_positions", losses)
    grads = {k: [floats(bundle(f"{d}/{b}")[1][k]) for b in ("all", "some", "rest", "none")]
             for k in whole if k.startswith("grad.")}
    worst = max(abs((y * n + z * (of - n)) / of - x) / max(map(abs, a))
                for a, s, r, _ in grads.values() for x, y, z in zip(a, s, r))
    t.ok(worst < 1e-4 and not any(any(g[3]) for g in grads.values()),
         "gradients_are_of_scored_positions", worst)


def test_repeat(binary, d):
    tokens(f"{d}/tok", B, T, VOCAB)
    for name, args in (("a", ["--threads", 1]), ("b", ["--threads", 2])):
        dump(binary, f"{d}/tok", f"{d}/{name}", "--init", 3, *args)
    dump(binary, f"{d}/tok", f"{d}/c", "--init", 4)
    t.ok(t.read(d, "a") == t.read(d, "b"), "threads_change_no_bit")
    t.ok(t.read(d, "a") != t.read(d, "c"), "seed_changes_the_weights")


def test_checkpoint(binary, d):
    t.train(binary, f"{d}/run", "--steps", 4)
    tokens(f"{d}/tok", B, T, VOCAB)
    done = dump(binary, f"{d}/tok", f"{d}/out", "--checkpoint", f"{d}/run/ckpt-000004")
    saved = bundle(f"{d}/run/ckpt-000004/model.safetensors")[1] if not done.returncode else {}
    dumped = bundle(f"{d}/out")[1] if saved else {}
    t.ok(saved and all(dumped["param." + n] == data for n, data in saved.items()),
         "checkpoint_gives_its_weights", t.said(done))


def test_refusals(binary, d):
    t.write(b"old", d, "out")
    tokens(f"{d}/tok", B, T, VOCAB)
    tokens(f"{d}/big", B, T, VOCAB, VOCAB)
    tokens(f"{d}/negative", B, T, VOCAB, -1)
    init = ("--init", 3)
    cases = {
        "batch_beyond_capacity": (dict(b=B + 1), init, ("--batch 3", "CONFIG_BATCH_SIZE=2")),
        "length_beyond_capacity": (dict(length=T + 1), init,
                                   ("--length 17", "CONFIG_BLOCK_SIZE=16")),
        "size_that_does_not_match": (dict(b=1), init, ("136", "68")),
        "token_beyond_vocabulary": (dict(tok="big"), init, ("256", "CONFIG_VOCAB_SIZE=256")),
        "negative_token": (dict(tok="negative"), init, ("-1",)),
        "tokens_and_targets": ({}, (*init, "--targets", f"{d}/tok"), ("--tokens", "--targets")),
        "missing_file": (dict(tok="none"), init, ("none", "No such file")),
        "neither_seed_nor_checkpoint": ({}, (), ("--init", "--checkpoint")),
        "both_seed_and_checkpoint": ({}, (*init, "--checkpoint", d), ("--init", "--checkpoint")),
        "missing_checkpoint": ({}, ("--checkpoint", f"{d}/none"), (f"{d}/none",)),
        "unknown_flag": ({}, (*init, "--lenght", 3), ("--lenght", "--length")),
    }
    for name, (kw, args, words) in cases.items():
        tok = f"{d}/{kw.pop('tok', 'tok')}"
        done = dump(binary, tok, f"{d}/out", *args, **kw)
        t.ok(t.one_line(done, *words) and t.read(d, "out") == b"old", name + "_is_refused",
             t.said(done))
    for name, value, words in (("target_beyond_vocabulary", VOCAB, ("256",)),
                               ("negative_target", -2, ("-2", "-1 or below")),
                               ("targets_that_do_not_match", None, ("targets", "256"))):
        numbers = [1] * (B * T) + [2] * (B * T - 1) + ([] if value is None else [value])
        t.write(struct.pack(f"<{len(numbers)}i", *numbers), d, "targets")
        done = t.tenon(binary, "dump", "--targets", f"{d}/targets", "--out", f"{d}/out", *init)
        t.ok(t.one_line(done, *words) and t.read(d, "out") == b"old", name + "_is_refused",
             t.said(done))


def limit_files():
    """Writes past 64 KiB fail as they do on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


def test_full_disk(binary, d):
    t.write(b"old", d, "out")
    tokens(f"{d}/tok", B, T, VOCAB)
    done = dump(binary, f"{d}/tok", f"{d}/out", "--init", 3, preexec_fn=limit_files)
    t.ok(t.one_line(done, f"{d}/out") and sorted(os.listdir(d)) == ["out", "tok"] and
         t.read(d, "out") == b"old", "full_disk_leaves_the_old_file_alone", t.said(done))
    done = dump(binary, f"{d}/tok", f"{d}/no/out", "--init", 3)
    t.ok(t.one_line(done, f"{d}/no/out"), "missing_folder_is_named", t.said(done))


def main():
    binary = t.build("small")
    for test in (test_contents, test_targets, test_repeat, test_checkpoint, test_refusals, test_full_disk):
        with t.folder() as d:
            test(binary, d)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
