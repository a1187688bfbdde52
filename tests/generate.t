#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tenon generate: repeatable, prompts as batches, greedy at the limits, the forward's own
predictions and losses, refusals."""
import os
import re
import struct
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402
from bundle import bundle    # noqa: E402

# Variants of the small model: token ids instead of text, the pool that leaks.
t.VARIANTS["shards"] = ["DATA_TREE=n", "DATA_SHARDS=y", 'DATA_PATH="none"']
t.VARIANTS["sequence"] = ['RA_MLA_MLP_GATE_POOL="sequence"']

T, VOCAB = 16, 256           # of training.SMALL


def generate(binary, run, *args):
    """A finished process, its output in bytes."""
    command = [binary, "generate", "--checkpoint", run, *map(str, args)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


def text_of(binary, run, *args, prompt="ab", n=8):
    """Bytes behind the prompt."""
    done = generate(binary, run, "--prompt", prompt, "--max-tokens", n, *args)
    assert done.returncode == 0 and done.stdout.startswith(prompt.encode()), done
    return done.stdout[len(prompt.encode()):-1]


def test_sampling(binary, run):
    free = ("--temperature", 1.5, "--top-k", 0)
    one = text_of(binary, run, *free, "--seed", 1)
    t.ok(len(one) == 8 and one == text_of(binary, run, *free, "--seed", 1, "--threads", 2),
         "same_seed_gives_the_same_text", one)
    t.ok(one != text_of(binary, run, *free, "--seed", 2), "seed_changes_the_text")
    t.ok(text_of(binary, run, *free, "--seed", 1, n=3) == one[:3], "longer_text_begins_the_same")
    greedy = text_of(binary, run, "--temperature", 0, "--seed", 1)
    t.ok(greedy == text_of(binary, run, "--temperature", 0, "--seed", 2),
         "temperature_0_needs_no_seed")
    t.ok(greedy == text_of(binary, run, "--temperature", 2, "--top-k", 1), "top_k_1_is_greedy")
    t.ok(greedy == text_of(binary, run, "--temperature", 2, "--top-p", 1e-6),
         "smallest_top_p_is_greedy")
    done = generate(binary, run, "--prompt", "ab", "--max-tokens", 8, *free, "--seed", 1,
                    "--samples", 2)
    t.ok(done.stdout.startswith(b"ab" + one + b"\nab") and
         done.stdout != (b"ab" + one + b"\n") * 2, "samples_begin_with_the_first_and_differ",
         done.stdout)


def test_prompts(binary, run, d):
    """Prompts of a file are one batch; each continues as it does alone."""
    greedy = ("--temperature", 0, "--max-tokens", 9)
    prompts = [b"ab", b"a longer one", b"c", b"\xff", b"the end"]
    t.write(b"\n".join(prompts), d, "prompts")
    alone = [subprocess.run([binary, "generate", "--checkpoint", run, b"--prompt", p,
                             *map(str, greedy)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE).stdout for p in prompts]
    done = generate(binary, run, "--prompts", f"{d}/prompts", *greedy)
    want = b"".join(b"==> prompt %d <==\n" % (i + 1) + text for i, text in enumerate(alone))
    t.ok(done.returncode == 0 and done.stdout == want,
         "prompts_of_a_batch_continue_as_alone", f"{done}\n{want}")
    free = ("--temperature", 1.5, "--top-k", 0, "--max-tokens", 4)
    done = generate(binary, run, "--prompts", f"{d}/prompts", "--samples", 2, *free)
    titles = [line for line in done.stdout.split(b"\n") if line.startswith(b"==> ")]
    t.ok(titles == [b"==> prompt %d, sample %d <==" % (i, j) for i in range(1, 6) for j in (1, 2)],
         "samples_of_prompts_come_in_order", done.stdout)
    t.write(b"ab\n\ncd\n", d, "hole")
    done = t.tenon(binary, "generate", "--checkpoint", run, "--prompts", f"{d}/hole")
    t.ok(t.one_line(done, "hole line 2", "empty"), "empty_line_is_refused", t.said(done))
    t.write(b"", d, "nothing")
    for name in ("nothing", "missing"):
        done = t.tenon(binary, "generate", "--checkpoint", run, "--prompts", f"{d}/{name}")
        t.ok(t.one_line(done, name), f"prompts_{name}_is_refused", t.said(done))
    done = t.tenon(binary, "generate", "--checkpoint", run, "--prompts", f"{d}/hole", "--prompt",
                   "a")
    t.ok(t.one_line(done, "exclude"), "two_kinds_of_prompts_are_refused", t.said(done))


# Losses of one checkpoint in float, by forward and through the caches: logits differ by
# about 1e-6 of the largest, 10 at most.
LOSS_TOL = 1e-4


def test_eval(binary, run):
    """The loss through the caches is the forward's over the same positions."""
    for start in (0, 1, 7, T - 1):
        done = t.tenon(binary, "eval", "--checkpoint", run, "--samples", 2, "--decode", start)
        found = re.search(r"loss ([\d.]+) from position (\d+) on, through the caches ([\d.]+)",
                          done.stdout)
        t.ok(found and int(found.group(2)) == start and
             abs(float(found.group(1)) - float(found.group(3))) < LOSS_TOL,
             f"decode_loss_is_the_forward's_from_position_{start}", t.said(done))


def argmax(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def test_decode_is_forward(binary, run, d):
    """Greedy text through the caches is what the full forward predicts position by position."""
    prompt = b"ab"
    ids = prompt + text_of(binary, run, "--temperature", 0, n=T - 2)
    t.write(struct.pack(f"<{T + 1}i", *ids, 0), d, "tok")
    t.tenon(binary, "dump", "--tokens", f"{d}/tok", "--out", f"{d}/out", "--checkpoint", run,
            "--batch", 1, "--length", T)
    data = bundle(f"{d}/out")[1]["logits"]
    rows = [struct.unpack_from(f"<{VOCAB}f", data, 4 * VOCAB * i) for i in range(T)]
    predicted = bytes(argmax(r) for r in rows[1:T - 1])
    t.ok(predicted == ids[2:], "greedy_text_is_the_forward's", f"{predicted} {ids}")


def test_end(binary, run):
    done = generate(binary, run, "--prompt", "abcd", "--max-tokens", 99)
    lines = done.stderr.decode().splitlines()
    t.ok(done.returncode == 0 and len(done.stdout) == T + 1 and len(lines) == 1 and
         "CONFIG_BLOCK_SIZE=16" in lines[0], "stops_with_one_line_where_positions_end", done)
    done = t.tenon(binary, "generate", "--checkpoint", run, "--prompt", "x" * (T + 1))
    t.ok(t.one_line(done, "17", "CONFIG_BLOCK_SIZE=16"), "prompt_beyond_positions_is_refused",
         t.said(done))
    done = t.tenon(binary, "generate", "--checkpoint", run, "--prompt", "")
    t.ok(t.one_line(done, "empty"), "empty_prompt_is_refused", t.said(done))


def shards(folder):
    """Training and validation shards of numbers that repeat."""
    os.makedirs(folder)
    ids = [i * i % 7 for i in range(2000)]
    for split in ("train", "val"):
        t.write(struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253) +
                struct.pack(f"<{len(ids)}H", *ids), folder, split + ".bin")


def test_ids(binary, run, d):
    """Without a tokenizer tokens are numbers, in and out."""
    text = text_of(binary, run, "--temperature", 0)
    done = generate(binary, run, "--prompt-ids", "97, 98", "--temperature", 0, "--max-tokens", 8)
    t.ok(done.stdout == b"ab" + text + b"\n", "ids_are_the_bytes", done)
    other, numbers = t.build("shards"), f"{d}/numbers"
    shards(f"{d}/shards")
    t.train(other, numbers, "--data", f"{d}/shards")
    done = t.tenon(other, "generate", "--checkpoint", numbers, "--prompt-ids", "1 4 2",
                   "--temperature", 0, "--max-tokens", 6)
    ids = done.stdout.split()
    t.ok(ids[:3] == ["1", "4", "2"] and len(ids) == 9 and all(int(i) < 7 for i in ids),
         "numbers_without_a_tokenizer", t.said(done))
    t.write(b"1 4 2\n3\n", d, "ids")
    both = t.tenon(other, "generate", "--checkpoint", numbers, "--prompts", f"{d}/ids",
                   "--temperature", 0, "--max-tokens", 6).stdout.splitlines()
    t.ok(len(both) == 4 and both[1] == done.stdout.strip("\n") and both[3].split()[0] == "3",
         "prompts_of_numbers", both)
    done = t.tenon(other, "generate", "--checkpoint", numbers, "--prompt", "ab")
    t.ok(t.one_line(done, "--prompt-ids"), "text_without_tokenizer_is_refused", t.said(done))
    for bad in ("256", "-1", "9x"):
        done = t.tenon(other, "generate", "--checkpoint", numbers, "--prompt-ids", bad)
        t.ok(t.one_line(done, bad), f"prompt_ids_{bad}_are_refused", t.said(done))


def test_refusals(binary, run, d):
    leaking = t.build("sequence")
    done = t.tenon(leaking, "generate", "--checkpoint", run, "--prompt", "ab")
    t.ok(t.one_line(done, "leaks", "sequence"), "leaking_pool_is_refused", t.said(done))
    done = t.tenon(binary, "generate", "--checkpoint", f"{d}/none", "--prompt", "ab")
    t.ok(t.one_line(done, f"{d}/none"), "missing_checkpoint_is_refused", t.said(done))
    for flag, value in (("--temperature", -1), ("--top-p", 0), ("--top-p", 2), ("--top-k", -1)):
        done = t.tenon(binary, "generate", "--checkpoint", run, f"{flag}={value}")
        t.ok(t.one_line(done, flag), f"{flag}_{value}_is_refused", t.said(done))


def main():
    binary = t.build("small")
    with t.folder() as d:
        run = f"{d}/run"
        t.train(binary, run)
        test_sampling(binary, run)
        test_prompts(binary, run, d)
        test_eval(binary, run)
        test_decode_is_forward(binary, run, d)
        test_end(binary, run)
        test_ids(binary, run, d)
        test_refusals(binary, run, d)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
