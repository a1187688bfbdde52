# SPDX-License-Identifier: MIT
"""The first half of a study: configurations, binaries and plans of its arms, and study.json."""
import json
import os
import shutil
import subprocess
import sys
import time

import study
import study_arms
import study_content
import study_state
import study_stats
import study_table
from dotconfig import DotConfig
from study import StudyError
from study_runs import say
from study_state import Study, output

OTHER_DATA = "make a study of its own of it, with another OUT"
BASE = "base"                # the folder of the configuration that BASE= names


def run_quiet(command):
    """Run a command; show its output only where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise StudyError(f"`{' '.join(command)}` failed", 2)


def kconfig(config, tree, *words, what):
    output([sys.executable, "scripts/kconfig.py", "--config", config, "--gen", tree, *words], what)


def copy_new(source, target):
    """A copy that is there whole or not at all, in place of an older one."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy2(source, target + ".new")
    os.replace(target + ".new", target)


class Build:
    """One binary: the base configuration with an arm's fragments and symbols on top."""

    def __init__(self, entry, objtree):
        self.entry = entry
        self.tree = os.path.join(objtree, "arms", entry.build)
        self.config = os.path.join(self.tree, ".config")
        self.binary = os.path.join(self.tree, "tenon")
        self.plan = None

    def configure(self, base):
        """Write the arm's .config."""
        os.makedirs(self.tree, exist_ok=True)
        draft, own = self.config + ".new", os.path.join(self.tree, "arm.config")
        shutil.copyfile(base, draft)
        paths = list(self.entry.fragments)
        if self.entry.symbols:
            with open(own, "w", encoding="utf-8") as f:
                f.writelines(f"CONFIG_{k}={v}\n" for k, v in self.entry.symbols.items())
            paths.append(own)
        if paths:
            kconfig(draft, self.tree, "merge", *paths, what=self.entry.title)
        if not os.path.exists(self.config) or \
                study.read(draft) != study.read(self.config):
            os.replace(draft, self.config)
        else:
            os.unlink(draft)

    def make(self, cpus):
        run_quiet(["make", "-s", f"-j{cpus}", f"O={self.tree}", "build"])

    def check(self, flags, elsewhere):
        """
        The figures of `tenon plan`; dies where a run could not begin. A run that can be
        ELSEWHERE only is not held against memory.
        """
        config = DotConfig.load(self.config)
        if config.s("DATA_PATH") or config.s("DATA_SEED"):      # read or drawn
            flags = [*flags, "--data", config.s("DATA_PATH")]
        if elsewhere and config.y("ARCH_CUDA") and not study_state.gpus():
            flags = [*flags, "--elsewhere"]
        self.plan = json.loads(output([self.binary, "--called-by-make", "plan", "--check", "--json",
                                       *flags], self.entry.title))

    def record(self, entry, base):
        """The arm as study.json has it."""
        compiler = study_content.compiler(self.tree)
        return {"name": entry.name, "title": entry.title, "what": entry.label,
                "folder": entry.folder, "twin": entry.twin, "leaks": self.plan["leaks"],
                "binary": f"bin/{entry.build}", "config": f"configs/{entry.folder}.config",
                "symbols": study_content.changes(base, self.config), "plan": self.plan,
                "decode_tok_s": None, "config_sha256": study_content.config_sha256(self.config),
                "sources_sha256": study_content.sources_sha256(self.tree), "compiler": compiler,
                "data": study_content.data_sha256(self.plan.get("data"))}


def base_config(args):
    """The .config that arms go on top of."""
    if not args.base:
        return args.config
    tree = os.path.join(args.objtree, BASE)
    os.makedirs(tree, exist_ok=True)
    path = os.path.join(tree, ".config")
    kconfig(path, tree, "defconfig", *args.base.split(), what=f"BASE={args.base}")
    return path


def build_order(entries):
    """One entry for each binary: the largest published arm, which has every mechanism, first."""
    builds = {}
    for entry in entries:
        builds.setdefault(entry.build, entry)
    last = max((e.build for e in entries if e.published), default=None)
    return sorted(builds.values(), key=lambda e: e.build != last)


def build_all(entries, base, args, cpus):
    """{folder: Build}; plan, data and folder of the first decide whether to go on."""
    began = time.monotonic()
    builds = {e.build: Build(e, args.objtree) for e in build_order(entries)}
    first = next(iter(builds.values()))
    for number, build in enumerate(builds.values()):
        say(f"building {build.entry.title}")
        build.configure(base)
        build.make(cpus)
        build.check([] if number else ["--out", args.out], args.build_only)
        study_table.same_data([(b.entry.title, b.plan.get("data", "")) for b in (first, build)],
                              OTHER_DATA)
        if not number:
            say(f"{build.entry.title}: {build.plan['params']:,} parameters, "
                f"{build.plan['train']['arena'] / 2**20:.1f} MiB, " +
                ("fits" if study_state.memory_checked(build.plan) else
                 "not held against memory, for no GPU is here: --run does"))
    say(f"{len(builds)} binaries built in {time.monotonic() - began:.0f} s")
    return builds


def runs_of(arms, seeds):
    """A run of every arm and seed, seeds outside: pairs are whole early."""
    return [{"arm": arm["name"], "seed": seed,
             "folder": arm["folder"] + (f"-seed{seed}" if seed != seeds[0] else ""),
             "content": study_content.of_run(arm, seed), "threads": None, "state": "waiting",
             "steps": 0, "started": None, "seconds": 0.0, "note": ""}
            for seed in seeds for arm in arms]


def aside(path):
    """PATH becomes PATH.old-1, -2, ...: the first free one, which is returned."""
    n = 1
    while os.path.exists(f"{path}.old-{n}"):
        n += 1
    os.rename(path, f"{path}.old-{n}")
    return f"{path}.old-{n}"


def keep_or_move(new, old):
    """Runs of the same content go on; others are moved aside, whatever they hold."""
    before = {run["folder"]: run for run in old.record["runs"]} if old else {}
    for run in new.record["runs"]:
        path, was = new.path(run), before.get(run["folder"])
        if was and was["content"] == run["content"]:
            run.update({k: was[k] for k in ("threads", "started", "seconds", "note", "test")
                        if k in was})
        elif os.path.exists(path):
            arm = old.arms[was["arm"]].record if was else {}
            why = study_content.difference(arm, new.arms[run["arm"]].record) if was else \
                "it belongs to no study"
            say(f"{path} is of other content ({why}); it is now {aside(path)}")
    for name, arm in new.arms.items():
        if old and name in old.arms and all(
                old.arms[name].record.get(part) == arm.record[part] for part in study_content.PARTS):
            arm.decode = old.arms[name].decode
            arm.record["forward_ms"] = old.arms[name].record.get("forward_ms")


def describe(args, command, cfg, arms, seeds):
    """study.json of a study that has not begun."""
    version = output([os.path.join(args.out, arms[0]["binary"]), "--version"], "tenon --version")
    commit, _, dirty = version.partition("git ")[2].partition(";")[0].partition("+")
    return {"format": study_state.FORMAT, "name": cfg.s("RUN_NAME"),
            "unit": arms[0]["plan"]["unit"], "command": command, "base": args.base or args.config,
            "baseline": study.reference([arm["name"] for arm in arms]), "seeds": seeds,
            "created": study_state.today(), "machine": None,
            "git": {"commit": commit, "dirty": bool(dirty)},
            "early_stop": {"p": args.early_stop} if args.early_stop else None,
            "arms": arms, "runs": runs_of(arms, seeds)}


def check_early(args, seeds):
    """Refuse an early stop that could stop nothing."""
    if args.early_stop and len(seeds) <= study_stats.PAIRS:
        raise StudyError(f"EARLY_STOP={args.early_stop:g}: of {len(seeds)} seeds none can be left out, for "
                         f"the first {study_stats.PAIRS} are needed; give SEEDS={study_stats.PAIRS + 1} "
                         "or more")
    if args.early_stop and not study_stats.scipy_stats():
        raise StudyError(study_stats.NO_EARLY)


def prepare(args, command, cpus):
    """Build what a study needs; its Study, with every finished and unfinished run found."""
    base = base_config(args)
    cfg = DotConfig.load(base)
    entries = study_arms.parse(args.arms) if args.arms else study.entries(cfg)
    if not entries:
        raise StudyError(f"{base} is no study: set CONFIG_RA_MLA_ABLATION_MODE=y, or "
                         "fragments as CONFIG_ABLATION_ARMS, or name arms: "
                         'make ablate ARMS="a.config SYMBOL=1,2"')
    first = cfg.i("SEED")
    seeds = [first + i for i in range(args.seeds or max(1, cfg.i("ABLATION_SEEDS")))]
    check_early(args, seeds)
    args.out = args.out or os.path.join("runs", cfg.s("RUN_NAME") + ("-arms" if args.arms else ""))
    builds = build_all(entries, base, args, cpus)
    if args.restart and os.path.exists(args.out):
        say(f"the old study is now {aside(args.out)}")
    os.makedirs(args.out, exist_ok=True)
    old = Study.load(args.out)
    arms = [builds[e.build].record(e, base) for e in entries]
    for entry, arm in zip(entries, arms):
        copy_new(builds[entry.build].config, os.path.join(args.out, arm["config"]))
        copy_new(builds[entry.build].binary, os.path.join(args.out, arm["binary"]))
    new = Study(args.out, describe(args, command, cfg, arms, seeds))
    keep_or_move(new, old)
    new.refresh()
    new.save()
    return new, next(iter(builds.values()))
