#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tenon compress against numpy in double: spectra, the error of every way by head and span,
losses; smaller checkpoints, in builds of their fragments; what is refused."""
import json
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402
from bundle import bundle    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "compress")
LAYERS, HEADS, KEYS, VALUES, T, SEQUENCES, VOCAB = 2, 2, 4, 6, 20, 11, 16
# Sums of products of a few hundred numbers, and eigenvectors of matrices whose eigenvalues
# lie far apart: rounding of double times that.
CLOSE = 1e-8
DRAWN = 0.05            # of a mean over 4000 draws, and one over 8 against its expectation
LINES = f"""
MODEL_GLA=y ARCH_CPU=y REAL_DOUBLE=y GPT2_MODEL_CUSTOM=y BLOCK="gla" MLP_MLP=n N_LAYER={LAYERS}
N_HEAD={HEADS} N_EMBD=16 BLOCK_SIZE={T} BATCH_SIZE=4 GRADIENT_ACCUMULATION=1 VOCAB_SIZE={VOCAB}
NORM_LAYERNORM=y LEARNED_POSITIONS=y HEAD_TIED=n GLA_KEY_DIM={KEYS} GLA_VALUE_DIM={VALUES}
GLA_GATE_RANK=0 GLA_GATE_TAU="2" GLA_GATE_BIAS="1" GLA_Q_SCALE=y GLA_OUT_NORM=n GLA_OUT_GATE=n
INIT_XAVIER=y DATA_MARKOV=y MARKOV_ORDER=2 DATA_TRAIN_SEQS=64 DATA_VAL_SEQS={SEQUENCES}
DATA_TEST_SEQS={SEQUENCES} MAX_ITERS=30 LEARNING_RATE="1e-2" WARMUP_STEPS=0 EVAL_SAMPLES=9
EVAL_INTERVAL=30 CHECKPOINT_INTERVAL=30
""".split()
MFA = ["MODEL_GLA", "MODEL_MFA_GLA=y", 'BLOCK="mfa_gla"', "GLA_KEY_DIM", "GLA_VALUE_DIM",
       f"MFA_LATENT_DIM={KEYS}", f"MFA_VALUE_DIM={VALUES}"]
MAMBA2 = ["MODEL_GLA", "MODEL_MAMBA2=y", 'BLOCK="mamba2"', *(x.split("=")[0] for x in LINES
          if x.startswith("GLA_")), "N_EMBD=18", "MAMBA2_NUM_HEADS=6", f"MAMBA2_HEAD_DIM={VALUES}",
          f"MAMBA2_STATE_SIZE={KEYS}", "MAMBA2_N_GROUPS=2"]
os.environ["TENON_OBJECTS"] = ""        # one object tree; what it can keep, it keeps by itself


def build(name, *more, fragments=()):
    """A binary of LINES with others on top, or without those that are names alone, in the one
    tree."""
    changed = {line.split("=")[0] for line in more}
    path = os.path.join(SCRATCH, "defconfig")
    lines = [x for x in LINES if x.split("=")[0] not in changed] + [x for x in more if "=" in x]
    t.write("".join(f"CONFIG_{line}\n" for line in lines).encode(), path)
    said = t.configure(SCRATCH, path, *fragments)
    done = said or subprocess.run(["make", "-s", f"O={SCRATCH}", "EXTRA_CFLAGS=-g0", "build"],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if said or done.returncode:
        print(f"Bail out! {name}: {said or done.stdout}")
        sys.exit(1)
    return shutil.copy2(f"{SCRATCH}/tenon", f"{SCRATCH}/tenon-{name}")


def compress(binary, *args, **kw):
    return t.tenon(binary, "compress", "--checkpoint", f"{binary}.run", *args, **kw)


def trained(name, *more):
    binary = build(name, *more)
    shutil.rmtree(f"{binary}.run", ignore_errors=True)
    done = t.train(binary, f"{binary}.run")
    t.ok(done.returncode == 0, f"{name}: a small model is trained", t.said(done))
    return binary


def measured(binary, *args):
    done = compress(binary, "--dims", "1,2,4", "--out", f"{binary}.json", *args)
    t.ok(done.returncode == 0, f"{os.path.basename(binary)}: compress runs", t.said(done))
    with open(f"{binary}.json", encoding="utf-8") as f:
        return json.load(f)


def row_of(found, row, basis, d):
    return next(r for r in found["rows"] if (r["row"], r["basis"], r["d"]) == (row, basis, d))


# ---- without numpy --------------------------------------------------------------------

def test_rows(name, found, scalar):
    rows = {(r["row"], r["basis"]) for r in found["rows"]}
    t.ok(("scalar", "top") in rows if scalar else ("scalar", "top") not in rows,
         f"{name}: the row scalar is there where decays are scalars, else not")
    exact = [("select", "top"), *((row, basis) for row in ("galerkin", "projected", "scalar")
                                  for basis in ("top", "balanced", "random"))]
    for row, basis in exact if scalar else exact[:-3]:
        r = row_of(found, row, basis, KEYS)
        t.ok(r["error"] < 1e-16 and abs(r["loss"] - found["test"]["loss"]) < 1e-9,
             f"{name}: {row} {basis} at full width is the model itself", (r["error"], r["loss"]))
    for row in ("value", "select", "galerkin", "projected", "vectorised"):
        errors = [row_of(found, row, "top", d)["error"] for d in (1, 2)]
        t.ok(1 > errors[0] > errors[1] > 1e-9, f"{name}: {row} errs, and less where it is wider",
             errors)
    if scalar:
        for basis in ("top", "balanced", "random"):
            pair = [row_of(found, row, basis, 2)["error"] for row in ("scalar", "projected")]
            t.ok(abs(pair[0] / pair[1] - 1) < CLOSE, f"scalar is projected in basis {basis}", pair)
    r = row_of(found, "value", "random", 2)
    t.ok(all(h["expected"] == 1 - 2 / VALUES for site in r["heads"] for h in site),
         f"{name}: random values leave 1 - d/V")
    t.ok(row_of(found, "vectorised", "top", 2)["weights_read_a_step"] == 2 * 2 * KEYS * VALUES,
         f"{name}: vectorised says what it reads")


def test_page(binary):
    page = f"{SCRATCH}/page.html"
    done = subprocess.run([sys.executable, "scripts/report_compress.py", f"{binary}.json", page],
                          stderr=subprocess.PIPE, text=True)
    body = t.read(page).decode() if not done.returncode else ""
    lines = body.count("<polyline")
    t.ok(body.count("<figure>") == 7 and lines > 30 and "http" not in body.split("</style>")[1],
         "a page of it has its figures, and needs nothing else", (done.stderr, lines))
    drawn = f"{SCRATCH}/drawn.svg"
    subprocess.run([sys.executable, "scripts/report_compress.py", f"{binary}.json", f"{binary}.json",
                    drawn], check=False)
    found = json.loads(t.read(f"{binary}.json"))
    heads = sum(len(site["heads"]) for site in found["layers"])
    ways = len({(r["row"], r["basis"]) for r in found["rows"]})
    lines = [e.tag for e in xml.etree.ElementTree.parse(drawn).iter() if e.tag.endswith("polyline")]
    t.ok(len(lines) == 2 * (heads + ways), "a picture of two has a line for every head and way",
         (len(lines), heads, ways))
    done = subprocess.run([sys.executable, "scripts/report_compress.py", "README.md", page],
                          stderr=subprocess.PIPE, text=True)
    t.ok(done.returncode == 1 and done.stderr.count("\n") == 1 and "README.md" in done.stderr,
         "another file is refused", done.stderr)


def test_threads(binary):
    texts = []
    for threads in (1, 3):
        compress(binary, "--dims", "2", "--out", f"{binary}.threads", "--threads", threads)
        texts.append(t.read(f"{binary}.threads"))
    t.ok(texts[0] == texts[1] and len(texts[0]) > 1000, "threads change no bit")


def refused(binary, name, args, *words):
    done = t.tenon(binary, "compress", *args)
    t.ok(t.one_line(done, *words), f"refused: {name}", t.said(done))


def test_refusals(vector, tmp):
    out = ["--out", f"{tmp}/no.json"]
    at = ["--checkpoint", f"{vector}.run"]
    absorb = ["--checkpoint-out", f"{tmp}/no"]
    refused(vector, "dims above K", [*at, "--dims", "2,5", *out], "--dims 5", "4 channels of a key")
    refused(vector, "no dims", [*at, "--dims", "2,,3", *out], "--dims 2,,3")
    refused(vector, "no --out", [*at, "--dims", "2"], "--out FILE.json")
    refused(vector, "nothing to do", at, "--absorb")
    refused(vector, "no checkpoint", ["--dims", "2", *out], "--checkpoint DIR")
    refused(vector, "no such way", [*at, "--absorb", "galerkin", "--dim", 2, *absorb],
            "value, scalar or select")
    refused(vector, "scalar of vector decays", [*at, "--absorb", "scalar", "--dim", 2, *absorb],
            "GLA_DECAY")
    refused(vector, "wider values than there are", [*at, "--absorb", "value", "--dim", 7, *absorb],
            "--dim 7", "6 channels of a value")
    refused(vector, "a folder that exists", [*at, "--absorb", "value", "--dim", 2,
                                             "--checkpoint-out", tmp], "exists", "--checkpoint-out")
    refused(t.build("small"), "a model without linear states", [*at, "--dims", "2", *out],
            "no sub-layer", "linear state")
    for number, (lines, ways) in enumerate((
            (["GLA_OUT_NORM=y", "GLA_K_NORM=y"], {"value": "GLA_OUT_NORM", "select": "GLA_K_NORM"}),
            (["GLA_OUT_GATE=y", "GLA_CONV=2"], {"value": "GLA_OUT_GATE", "select": "GLA_CONV"}))):
        binary = build(f"between{number}", *lines)
        for way, symbol in ways.items():
            refused(binary, f"{way} where {symbol} stands between",
                    [*at, "--absorb", way, "--dim", 2, *absorb], f"CONFIG_{symbol}")
    t.ok(os.listdir(tmp) == [], "what is refused writes nothing", os.listdir(tmp))


# ---- smaller checkpoints -------------------------------------------------------------------

def absorbed(binary, way, d, *more):
    """The folder of a smaller checkpoint, and a build of its fragment."""
    folder = f"{binary}-{way}"
    shutil.rmtree(folder, ignore_errors=True)
    done = compress(binary, "--absorb", way, "--dim", d, "--checkpoint-out", folder)
    t.ok(done.returncode == 0, f"absorb {way} {d}", t.said(done))
    return folder, build(f"{way}{d}", *more, fragments=[f"{folder}/absorbed.config"])


def dumped(binary, checkpoint, data):
    """{name: numbers} of a dump of the test split, four sequences."""
    out = f"{SCRATCH}/bundle"
    done = t.tenon(binary, "dump", "--targets", data, "--checkpoint", checkpoint, "--out", out)
    t.ok(done.returncode == 0, f"{os.path.basename(checkpoint)} is read by its build", t.said(done))
    header, raw, _ = bundle(out)
    return {name: (entry["shape"], raw[name]) for name, entry in header.items()}


def evaluated(binary, checkpoint):
    done = t.tenon(binary, "eval", "--checkpoint", checkpoint, "--split", "test")
    return float(done.stdout.split(" loss ")[1].split()[0])


def test_absorbed(found, folder, binary, way, d):
    loss, want = evaluated(binary, folder), row_of(found, way, "top", d)["loss"]
    t.ok(abs(loss - want) < 1e-6, f"{way} {d}: the build has the loss of the compressed model",
         (loss, want))
    decode = t.tenon(binary, "eval", "--checkpoint", folder, "--split", "test", "--decode", 3)
    both = [float(x) for x in re.findall(r"(?:loss|caches) (\d+\.\d+)", decode.stdout)]
    t.ok(decode.returncode == 0 and len(both) == 2 and abs(both[0] - both[1]) < 1e-6,
         f"{way} {d}: and decodes", t.said(decode))
    run = f"{binary}.trained"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder, f"{run}/ckpt-000030")
    done = t.tenon(binary, "train", "--out", run, "--steps", 40, "--allow-config-change")
    t.ok(done.returncode == 2 and "optim.safetensors" in t.said(done).splitlines()[-1],
         f"{way} {d}: and is not trained further", t.said(done))


# ---- with numpy ------------------------------------------------------------------------------

def sequences(binary, split):
    """Inputs and targets of a split, as numpy has them."""
    import numpy as np
    out = f"{SCRATCH}/sequences"
    t.tenon(binary, "data", "--split", split, "--count", SEQUENCES, "--out", out)
    header, raw, _ = bundle(out)
    return [np.frombuffer(raw[n], "<i4").reshape(header[n]["shape"]) for n in ("inputs", "targets")]


def batch_file(binary):
    """Four sequences of the test split, for dumps."""
    inputs, targets = sequences(binary, "test")
    path = f"{SCRATCH}/batch.in"
    t.write(inputs[:4].tobytes() + targets[:4].tobytes(), path)
    return path


def model_of(dump, scalar):
    import numpy as np
    import compress_ref as ref
    p = {name[6:]: np.frombuffer(raw, "<f8").reshape(shape) for name, (shape, raw) in dump.items()
         if name.startswith("param.")}
    return ref.Model(p, LAYERS, HEADS, 2.0, scalar)


def near(a, b, close=CLOSE):
    return abs(a - b) <= close * max(abs(b), 1e-9)


def test_spectra(name, found, bases):
    worst = 0
    import numpy as np
    for (layer, h), b in bases.items():
        head = found["layers"][layer]["heads"][h]
        for what in ("M_K", "M_V", "C_q"):
            values = np.linalg.eigvalsh(getattr(b, what))[::-1]
            p = values / values.sum()
            energy, entry = p.cumsum(), head[what]
            worst = max(worst, *abs(np.array(entry["lambda"]) - values) / values[0],
                        *abs(np.array(entry["energy"]) - energy),
                        abs(entry["participation"] - 1 / (p * p).sum()),
                        abs(entry["entropy_rank"] - math.exp(-(p * np.log(p)).sum())),
                        *(abs(entry[f"r{r}"] - 1 - int((energy >= r / 100 - 1e-12).argmax()))
                          for r in (90, 95, 99)))
    t.ok(worst < CLOSE, f"{name}: spectra of M_K, M_V and C_q, ranks and energies", worst)


def errors_of(o, other):
    """[whole, span 0, ...] of [B,T,V]"""
    rest, whole = ((o - other) ** 2).sum((0, 2)), (o ** 2).sum((0, 2))
    span = [[i for i in range(T) if i * 16 // T == s] for s in range(16)]
    return [rest.sum() / whole.sum()] + [rest[s].sum() / whole[s].sum() for s in span]


def test_ways(name, found, model, bases, test):
    import compress_ref as ref
    heads = model.states(test[0])
    for r in found["rows"]:
        if r["basis"] == "random":
            continue
        way = (r["row"], r["basis"], r["d"])
        bad = []
        for at, head in heads.items():
            entry = r["heads"][at[0]][at[1]]
            want = errors_of(head.o, ref.compressed(*way, head, bases[at]))
            bad += [(a, b) for a, b in zip([entry["error"], *entry["spans"]], want)
                    if not abs(a - b) < CLOSE]
        logits = model.logits(test[0], lambda *at: ref.compressed(*way, at[2], bases[at[:2]]))
        loss = ref.loss(logits, test[1], VOCAB)
        t.ok(not bad and near(r["loss"], loss), f"{name}: errors and loss of {way}",
             (bad[:3], r["loss"], loss))
    r = row_of(found, "projected", "random", 2)
    for at, head in heads.items():
        entry, want = r["heads"][at[0]][at[1]], ref.expected(2, head)
        t.ok(near(entry["expected"], want, DRAWN), f"{name}: a random projection costs {at}",
             (entry["expected"], want))


def test_logits(name, way, d, dump, model, bases, batch):
    import numpy as np
    import compress_ref as ref
    shape, raw = dump["logits"]
    got = np.frombuffer(raw, "<f8").reshape(shape)[..., :VOCAB]
    want = model.logits(batch, lambda *at: ref.compressed(way, "top", d, at[2], bases[at[:2]]))
    off = abs(got - want[..., :VOCAB]).max()
    t.ok(off < CLOSE, f"{name}: the build of {way} {d} gives the compressed model's logits", off)


def against_numpy(name, binary, found, scalar, smaller):
    """@smaller: [(way, d, folder, binary)]"""
    import compress_ref as ref
    data = batch_file(binary)
    model = model_of(dumped(binary, f"{binary}.run", data), scalar)
    fit, test = sequences(binary, "val"), sequences(binary, "test")
    bases = {at: ref.Bases(head) for at, head in model.states(fit[0]).items()}
    test_spectra(name, found, bases)
    test_ways(name, found, model, bases, test)
    for way, d, folder, build_of in smaller:
        test_logits(name, way, d, dumped(build_of, folder, data), model, bases, test[0][:4])


def test_model(name, *more, ways):
    scalar = name in ("scalar", "mamba2")
    binary = trained(name, *more)
    found = measured(binary)
    test_rows(name, found, scalar)
    smaller = []
    for way, d in ways:
        folder, own = absorbed(binary, way, d, *more)
        test_absorbed(found, folder, own, way, d)
        smaller.append((way, d, folder, own))
    try:
        import numpy    # noqa: F401
    except ImportError:
        print(f"# {name}: not compared with numpy, which is not installed")
        return binary
    if name == "mamba2":        # its operands are not those of compress_ref
        return binary
    against_numpy(name, binary, found, scalar, smaller)
    return binary


def main():
    os.chdir(t.SRC)
    os.makedirs(SCRATCH, exist_ok=True)
    vector = test_model("vector", ways=[("value", 2), ("select", 2)])
    test_page(vector)
    test_threads(vector)
    test_model("scalar", 'GLA_DECAY="scalar"', ways=[("scalar", 2)])
    mfa = test_model("mfa_gla", *MFA, ways=[])
    test_model("mamba2", *MAMBA2, ways=[])
    with t.folder() as tmp:
        test_refusals(vector, tmp)
        refused(mfa, "a smaller mfa_gla", ["--checkpoint", f"{mfa}.run", "--absorb", "select", "--dim",
                                           2, "--checkpoint-out", f"{tmp}/no"], "mfa_gla")
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
