# SPDX-License-Identifier: MIT
"""OUT/study.json: what a study is, and how far it is. Documentation/study.md has its fields.

Everything that runs, shows or reports a study reads this file and the folders of its runs,
so that a study can be moved: paths in it start at OUT.
"""
import fcntl
import json
import os
import platform
import subprocess
import time
from functools import cached_property

import study
import study_stats
from dotconfig import DotConfig
from study import StudyError

FILE, LOCK, FORMAT = "study.json", "study.lock", 1


def replace(path, text):
    """Write a file under a temporary name, then rename."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(path + ".new", path)


class Arm:
    """An arm of study.json, with what a table and a scheduler ask of it."""

    def __init__(self, out, record):
        self.out, self.record = out, record
        self.name, self.title, self.label = record["name"], record["title"], record["what"]
        self.twin, self.leaks, self.plan = record["twin"], record["leaks"], record["plan"]
        self.flops = self.plan["flops_token"]

    @property
    def binary(self):
        return os.path.join(self.out, self.record["binary"])

    @cached_property
    def config(self):
        return DotConfig.load(os.path.join(self.out, self.record["config"]))

    @property
    def iters(self):
        return self.config.i("MAX_ITERS")

    @property
    def decode(self):
        return self.record["decode_tok_s"]

    @decode.setter
    def decode(self, value):
        self.record["decode_tok_s"] = value


class Study:
    """A study in its folder."""

    def __init__(self, out, record):
        self.out, self.record = out, record
        self.arms = {arm["name"]: Arm(out, arm) for arm in record["arms"]}

    @classmethod
    def load(cls, out):
        """The study of a folder; None where there is none."""
        try:
            with open(os.path.join(out, FILE), encoding="utf-8") as f:
                record = json.load(f)
            if record["format"] != FORMAT:
                raise StudyError(f"{out}/{FILE}: format {record['format']}, not {FORMAT}; "
                                 "RESTART=1 moves the folder aside")
            return cls(out, record)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{out}/{FILE}: damaged ({error}); RESTART=1 moves the folder "
                             "aside") from None

    @classmethod
    def there(cls, out):
        """The same, where there has to be one."""
        one = cls.load(out)
        if not one:
            raise StudyError(f"{out}: no study is there (no {FILE}); name its folder: OUT=DIR")
        return one

    @property
    def early(self):
        """The rule of EARLY_STOP, as study_stats takes it; None without."""
        rule = self.record["early_stop"]
        if rule and rule["p"] >= study_stats.ALPHA:     # as earlier versions took it
            raise StudyError(f"{self.out}/{FILE}: early_stop with p {rule['p']:g}, and it must be below "
                             f"{study_stats.ALPHA}; run the study again with another EARLY_STOP")
        return rule and study_stats.Early(rule["p"], len(self.record["seeds"]))

    def save(self):
        replace(os.path.join(self.out, FILE), json.dumps(self.record, indent=1) + "\n")

    def lock(self):
        """One process runs a study; the lock ends with it. Returns what holds the lock."""
        held = open(os.path.join(self.out, LOCK), "ab")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"{self.out}: another process runs this study; "
                             f"`make ablate-status OUT={self.out}` shows how far it is") from None
        return held

    def running(self):
        """Whether a process runs it."""
        try:
            self.lock().close()
            return False
        except StudyError:
            return True

    def path(self, run):
        return os.path.join(self.out, run["folder"])

    def refresh(self):
        """States as the folders show them: finished runs are done, the others wait."""
        for run in self.record["runs"]:
            done = study.load_result(self.path(run))
            if done and (done["steps"] >= done["total"] or done.get("reached")):
                run.update(state="done", steps=done["steps"])
            elif run["state"] != "stopped":
                row = study.last_row(self.path(run))
                run.update(state="waiting", steps=row["step"] if row else 0)


def output(command, what):
    """What a command prints; its last line of errors is the reason where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no reason given"]
        errors = [line for line in lines if line.startswith("error: ")] or lines[:1]
        raise StudyError(f"{what}: {errors[0].removeprefix('error: ').removeprefix('tenon: ')}",
                         done.returncode)
    return done.stdout


def field(path, name):
    """The value of "NAME: value" or NAME="value" in a file; "" without."""
    try:
        with open(path, encoding="utf-8") as f:
            for line in f:
                key, _, value = line.replace("=", ":", 1).partition(":")
                if key.strip() == name:
                    return value.strip().strip('"')
    except OSError:
        pass
    return ""


def gpus():
    """One line for each GPU, as nvidia-smi names them without their numbers."""
    try:
        text = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.partition(": ")[2].partition(" (")[0] for line in text.splitlines()
            if line.startswith("GPU ")]


def memory_checked(plan):
    """Whether a plan was made where it can run."""
    return plan["memory_available"] is not None


def machine(compiler):
    """Where a study runs."""
    return {"cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
            "cores": len(os.sched_getaffinity(0)), "gpu": ", ".join(gpus()) or None,
            "os": field("/etc/os-release", "PRETTY_NAME") or platform.platform(),
            "compiler": compiler}


def today():
    return time.strftime("%Y-%m-%d %H:%M:%S")
