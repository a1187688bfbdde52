#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What make is told, and what it finds, that it cannot use: flags that change results, folders
that make or the shell would read otherwise, goals that are none, objects that a crash left
empty. And what it installs; and bits that no processor changes."""
import os
import shlex
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import terminal                                                 # noqa: E402
import training as t                                            # noqa: E402
from faults import ENV, MAKE, run, said, snapshot, place       # noqa: E402

LOOSE = ("-ffast-math -Ofast -funsafe-math-optimizations -fassociative-math -freciprocal-math "
         "-ffinite-math-only -fno-signed-zeros -fno-trapping-math -fno-math-errno "
         "-ffp-contract=fast -fexcess-precision=fast -fsingle-precision-constant -mrecip "
         "-mrecip=all -mfpmath=387 -mdaz-ftz").split()
# only where the bits must be those of every machine
UNPORTABLE = "-march=native -march=x86-64-v4 -mtune=native -ffp-contract=on".split()
ODD = ":%$'\"\\*?[];&|<>(){}`!,^~# \t\n"


def refused(name, top, command, *words):
    """One line of ours or of make's, status 2, nothing changed."""
    before = snapshot(top)
    result = run(*command)
    lines = [x for x in result.stderr.splitlines()
             if not x.startswith(("make: *** [", "make[1]: *** ["))]
    t.ok(result.returncode == 2 and len(lines) == 1 and snapshot(top) == before and
         all(word in lines[0] for word in words), name, t.said(result))


def test_flags(top, make, portable):
    plain = ["make", "-s", *make[3:]]       # without EXTRA_CFLAGS
    for flag in LOOSE:
        settings = [f"EXTRA_CFLAGS=-O1 {flag}"]
        if flag in ("-ffast-math", "-Ofast", "-fassociative-math"):
            settings += [f"EXTRA_LDFLAGS={flag}", f"CC=gcc {flag}"]
        for setting in settings:
            refused(f"make {setting}", top, plain + [setting, "build"], setting.split("=")[0], flag)
    for flag in UNPORTABLE:
        for setting in (f"EXTRA_CFLAGS=-O1 {flag}", f"CC=gcc {flag}"):
            refused(f"portable bits, make {setting}", top, ["make", "-s", f"O={portable}", setting,
                                                            "build"], flag)


def test_folders(top):
    for char in ODD:
        for place_of in (f"{top}/a{char}b", f"{top}/{char}"):
            refused(f"O= with {char!r}: {place_of[len(top):]!r}", top,
                    ["make", "-s", f"O={place_of}".replace("$", "$$") if char == "$" else
                     f"O={place_of}", "defconfig-tiny-gpt2"], "O=", "another folder")
    refused("O= with a dash in front", top, ["make", "-s", "O=-x", "defconfig-tiny-gpt2"], "O=-x")
    for name in ("\u00e4\u20ac", "a+b", "a=b", "a@b", "a-b.c", "none/../here", "x/./y/../z"):
        path = f"{top}/{name}"
        result = run(*MAKE, f"O={path}", "defconfig-tiny-gpt2")
        t.ok(result.returncode == 0 and os.path.exists(os.path.normpath(path) + "/.config"),
             f"O= with {name}", t.said(result))
        shutil.rmtree(os.path.normpath(path))
    near = os.path.relpath(f"{top}/near", t.SRC)
    result = run(*MAKE, f"O={near}", "defconfig-tiny-gpt2")
    t.ok(result.returncode == 0 and os.path.exists(f"{top}/near/.config"),
         "O= with a path through ..", t.said(result))


def test_goals(top, make):
    for goals in (["defconfig-tiny-gpt2.config"], ["tiny-gpt2.config_defconfig"],
                  ["defconfig-real-double.config"], ["defconfig-tiny-gpt2", "defconfig-x.config"],
                  ["--", "--"], ["--", "-x"], ["--", "--", "build"], ["--", "--help"], [""],
                  ["nonesuch"], ["trian"], ["tenon\x1b[31m"]):
        refused(f"make {' '.join(goals)!r}", top, make + goals)


def test_words(top, make):
    """What is given to a run is one word, whatever is in it."""
    make = make + ["EXTRA_CFLAGS=-Og -g0"]
    for value in ("two", "2 ; touch hacked", "$(touch hacked)", "-1", "`x`", "'", "5000", "1 2"):
        refused(f"make THREADS={value!r}", top, make + [f"OUT={top}/new", f"THREADS={value}"],
                "THREADS=N")
    for name in ("a b", "a'b", "a$b", "a;b", "a\"b", "--out", "a`b"):
        result = run(*make, f"OUT={top}/{name}", "THREADS=1")
        t.ok(result.returncode == 0 and os.listdir(top) == [name] and
             os.path.exists(f"{top}/{name}/result.json"), f"make OUT= with {name!r}",
             f"{os.listdir(top)} {t.said(result)}")
        shutil.rmtree(f"{top}/{name}", ignore_errors=True)


def test_empty(tree, make):
    """Each file of a build, emptied, is made again; so is what is linked from it."""
    binary = f"{tree}/tenon"
    kept = t.read(binary)
    files = ["tenon", "lib/util.o", "lib/util.d", "model/model.o", "tools/main.o", "tools/main.d",
             "lib/config-gz.o", "data/corpus.o", "data/corpus.bin", "scripts/fixdep",
             "include/generated/config.gz", "include/generated/autoconf.h",
             "include/generated/taps.h", "include/generated/free.h", "include/config/auto.conf",
             "include/generated/config", "include/generated/build.h"]
    for name in files:
        os.truncate(f"{tree}/{name}", 0)
        result = run(*make, "build")
        works = run(binary, "config").returncode == 0 if os.access(binary, os.X_OK) else False
        t.ok(result.returncode == 0 and os.path.getsize(f"{tree}/{name}") and works and
             t.read(binary) == kept, f"an empty {name} is made again", t.said(result))
    for name in files:
        os.truncate(f"{tree}/{name}", 0)
    result = run(*make, "build")
    t.ok(result.returncode == 0 and t.read(binary) == kept, "all of them empty", t.said(result))


def test_install(top, make):
    for words, prefix in ((["PREFIX=/usr"], "usr"), ([], "usr/local"), (["PREFIX=/a 'b'"], "a 'b'")):
        dest = f"{top}/dest"
        result = run(*make, "install", f"DESTDIR={dest}", *words)
        files = sorted(os.path.relpath(os.path.join(base, x), dest)
                       for base, _, names in os.walk(dest) for x in names)
        t.ok(result.returncode == 0 and files == [
            f"{prefix}/bin/tenon", f"{prefix}/share/bash-completion/completions/tenon",
            f"{prefix}/share/man/man1/tenon.1"], f"make install {' '.join(words)}",
             f"{files} {t.said(result)}")
        shutil.rmtree(f"{top}/kept", ignore_errors=True)
        os.rename(dest, f"{top}/kept")
    binary = f"{top}/kept/a 'b'/bin/tenon"
    page = t.read(f"{top}/kept/a 'b'/share/man/man1/tenon.1").decode()
    verbs = [x.split()[0] for x in run(binary, "--help").stdout.splitlines() if x[:2] == "  "]
    script = f"{top}/kept/a 'b'/share/bash-completion/completions/tenon"
    for verb in verbs:
        flags = [x.split()[0] for x in run(binary, verb, "--help").stdout.splitlines()
                 if x[:4] == "  --"]
        t.ok(len(flags) > 1 and f".SS tenon {verb}\n" in page and
             all(flag.replace("-", "\\-") in page for flag in flags),
             f"the man page has {verb} and its flags", flags)
        t.ok(complete(script, "tenon", verb, "--") == sorted(flags),
             f"{verb}: its flags are completed", complete(script, "tenon", verb, "--"))
    t.ok(complete(script, "tenon", "pl") == ["plan"], "verbs are completed")
    t.ok(complete(script, "tenon", "train", "--out", f"{top}/ke") == [f"{top}/kept"],
         "paths are completed", complete(script, "tenon", "train", "--out", f"{top}/ke"))
    test_tab(f"{top}/kept", script)
    shutil.rmtree(f"{top}/kept")


def test_tab(folder, script):
    """The key itself, beside a folder with the name of a verb and one with a space."""
    if not terminal.exists():
        t.ok(True, "the tab key # SKIP no terminals here")
        return
    for name in ("train", "a run"):
        os.mkdir(f"{folder}/{name}")
    for typed, wanted in (("tr\t--thr\t", "train --threads"), ("eval --ch\ta\\ r\t", "a\\ run/")):
        keys = [f"source {shlex.quote(script)}; PS1=; echo rea''dy\n", f"tenon {typed}", "\x15exit\n"]
        screen = terminal.drive(["bash", "--norc", "--noprofile", "-i"], keys, cwd=folder)[1]
        t.ok(wanted in screen.split("ready")[-1], f"the tab key: {typed!r} becomes {wanted!r}",
             repr(screen))


def complete(script, *words):
    """What bash would offer for the last word."""
    text = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tenon; '
            'printf "%s\\n" "${COMPREPLY[@]}"')
    return sorted(run("bash", "-c", text, "bash", script, *words).stdout.split())


def test_portable(portable):
    """Two threads and one, and a C library told that this processor has less: the same bits."""
    binary = f"{portable}/tenon"
    config = run(binary, "config").stdout
    t.ok("CONFIG_CPU_PORTABLE_BITS=y" in config and "CONFIG_BLAS_BUILTIN=y" in config and
         "CPU_NATIVE" not in config, "portable bits: products of our own, no native code", config)
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", binary], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if code.returncode:
        t.ok(True, "portable bits: no fused instruction # SKIP no objdump here")
    else:
        ours = [x for x in code.stdout.splitlines() if "vfm" in x or "vfnm" in x or "zmm" in x]
        t.ok(not ours, "portable bits: no fused instruction, no register of AVX-512", ours[:5])
    seen = set()
    for number, env in enumerate(({}, {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL"},
                                  {"OPENBLAS_CORETYPE": "Nehalem"}, {"OMP_NUM_THREADS": "3"})):
        out = f"{portable}/run-{number}"
        result = t.tenon(binary, "train", "--out", out, "--steps", 5, "--restart",
                         env={**ENV, **env})
        seen.update(x.split()[-1] for x in result.stdout.splitlines() if ", weights " in x)
    t.ok(len(seen) == 1, "portable bits: one set of them", seen)


def main():
    with t.folder() as top:
        tree, portable = f"{top}/tree", f"{top}/portable"
        make = MAKE + [f"O={tree}"]
        short = place(f"{top}/short.config", b"CONFIG_MAX_ITERS=2\nCONFIG_EVAL_SAMPLES=1\n")
        for command in (make + ["defconfig-tiny-gpt2", short, "build"],
                        ["make", "-s", "EXTRA_CFLAGS=-O2 -g0", f"O={portable}", "defconfig-tiny-gpt2",
                         "portable-bits.config", "build"]):
            result = run(*command)
            t.ok(result.returncode == 0, f"{command[-1]} of {command[3]}", t.said(result))
        empty = place(f"{top}/odd", {})
        test_flags(empty, make, portable)
        test_folders(empty)
        test_goals(empty, make)
        test_words(place(f"{top}/words", {}), make)
        test_empty(tree, make)
        test_install(top, make)
        test_portable(portable)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
