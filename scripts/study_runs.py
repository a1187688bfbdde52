# SPDX-License-Identifier: MIT
"""The training runs of a study: started, watched, stopped."""
import os
import signal
import subprocess
import sys
import time

import study
from study import StudyError

POLL = 0.25                  # seconds between looks at the running arms
ESTIMATE_ROWS = 10           # training steps that an estimate of the time rests on


def say(text):
    print(text, flush=True)


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


class Run:
    """One training run of an arm."""

    def __init__(self, arm, step, seed, out, threads, iters, first_seed):
        tail = "" if seed == first_seed else f"-seed{seed}"
        self.iters = iters
        self.arm, self.step, self.seed, self.threads = arm, step, seed, threads
        self.name = f"step {step}" + (f" seed {seed}" if tail else "")
        self.folder = os.path.join(out, f"step{step}{tail}")
        self.log = self.folder + ".log"
        self.process = None
        self.began = self.rows_before = 0

    def start(self):
        """In a session of its own, so that Ctrl-C reaches it once: through us."""
        env = dict(os.environ, OMP_WAIT_POLICY="passive")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.arm.binary, "train", "--out", self.folder, "--seed", str(self.seed),
                 "--threads", str(self.threads)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                start_new_session=True)
        self.began = time.monotonic()
        self.rows_before = self.rows()

    def rows(self):
        """Training steps in the log."""
        row = study.last_row(self.folder)
        return row["step"] if row else 0

    def seconds_per_step(self):
        """Of this process, or None before it has a few steps behind it."""
        done = self.rows() - self.rows_before
        if done < min(ESTIMATE_ROWS, self.iters - self.rows_before):
            return None
        return (time.monotonic() - self.began) / max(done, 1)

    def finish(self):
        """Raise where the run failed."""
        status = self.process.returncode
        if status:
            last = (read(self.log).strip().splitlines() or ["no output"])[-1]
            last = last.removeprefix("tenon: ")
            raise StudyError(f"{self.name} ended with status {status}: {last} (log: {self.log})",
                             status if status > 0 else 1)
        if not study.load_result(self.folder):
            raise StudyError(f"{self.name} wrote no {self.folder}/result.json", 1)

    def progress(self):
        row = study.last_row(self.folder)
        if not row:
            return f"{self.name}: starts"
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.3f}"
        return f"{self.name}: {row['step']} of {self.iters}, loss {loss}"


class Scheduler:
    """Runs a list of runs, @jobs at a time."""

    def __init__(self, runs, jobs):
        self.waiting, self.active = list(runs), []
        self.jobs = jobs
        self.estimated = False
        self.stopped = None
        self.live = sys.stdout.isatty()
        self.began = time.monotonic()

    def stop(self, signum, _frame):
        """Pass a signal on: children checkpoint and end; a second one ends them at once."""
        self.stopped = signum
        self.waiting = []
        for run in self.active:
            if run.process and run.process.poll() is None:
                run.process.send_signal(signum)

    def fill(self):
        while self.waiting and len(self.active) < self.jobs:
            run = self.waiting.pop(0)
            self.line(f"{run.name} starts ({run.threads} thread{'s' * (run.threads > 1)})")
            self.active.append(run)
            run.start()
            if self.stopped:
                run.process.send_signal(self.stopped)

    def reap(self):
        for run in [r for r in self.active if r.process.poll() is not None]:
            self.active.remove(run)
            if self.stopped:
                continue
            run.finish()
            result = study.load_result(run.folder)
            took, trained = time.monotonic() - run.began, run.rows() > run.rows_before
            if trained:
                self.estimate([run])
            how = f"done in {took:.0f} s" if trained else "was finished"
            self.line(f"{run.name} {how}: validation loss {study.number(result['val_loss'])}")

    def line(self, text):
        say(("\r\033[K" if self.live else "") + text)

    def estimate(self, measured):
        """Once, when every run of @measured has a few steps behind it; time goes with FLOPs."""
        seconds = [run.seconds_per_step() for run in measured]
        if self.estimated or not measured or None in seconds:
            return
        rate = sum(s / r.arm.flops for s, r in zip(seconds, measured)) / len(seconds)
        work = sum(r.arm.flops * (r.iters - r.rows()) for r in self.active + self.waiting)
        total = time.monotonic() - self.began + rate * work / self.jobs
        self.line(f"estimated total time: {total:.0f} s")
        self.estimated = True

    def show(self):
        if self.live and self.active:
            sys.stdout.write("\r\033[K" + " | ".join(r.progress() for r in self.active)[:110])
            sys.stdout.flush()

    def loop(self):
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.stop)
        try:
            while self.waiting or self.active:
                self.fill()
                time.sleep(POLL)
                self.reap()
                self.estimate(self.active)
                self.show()
        except StudyError:
            self.stop(signal.SIGTERM, None)
            for run in self.active:
                run.process.wait()
            raise
        if self.stopped:
            raise StudyError("stopped; the same command resumes", 128 + self.stopped)
