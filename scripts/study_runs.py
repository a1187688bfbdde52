# SPDX-License-Identifier: MIT
"""The training runs of a study: started, watched, stopped."""
import os
import signal
import subprocess
import sys
import time

import study
import study_table
from study import StudyError

POLL = 0.25                  # seconds between looks at the running arms
ESTIMATE_ROWS = 10           # training steps that an estimate of the time rests on
LINES = 5                    # lines of an arm's loss that stay, at most; its log has the others
WIDTH = 80                   # of a terminal that does not say


def say(text):
    print(text, flush=True)


def columns():
    """The longest line that the terminal does not wrap."""
    try:
        return (os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH) - 1
    except OSError:
        return WIDTH - 1


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


class Run:
    """One training run of an arm."""

    def __init__(self, arm, entry, seed, out, threads, first_seed):
        tail = "" if seed == first_seed else f"-seed{seed}"
        self.arm, self.entry, self.seed, self.threads = arm, entry, seed, threads
        self.iters = arm.iters
        self.name = entry.title + (f" seed {seed}" if tail else "")
        self.folder = os.path.join(out, entry.folder + tail)
        self.log = self.folder + ".log"
        self.process = None
        self.told = 0               # lines of loss that stay
        self.trained = False        # by this study, now
        self.began = self.rows_before = 0

    def start(self):
        """In a session of its own, so that Ctrl-C reaches it once: through us."""
        env = dict(os.environ, OMP_WAIT_POLICY="passive")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.arm.binary, "train", "--out", self.folder, "--seed", str(self.seed),
                 "--threads", str(self.threads), "--label",
                 f"{self.entry.title}: {self.entry.label}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                start_new_session=True)
        self.began = time.monotonic()
        self.rows_before = self.rows()
        self.told = self.rows_before * LINES // self.iters

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

    def progress(self, row):
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
            took = time.monotonic() - run.began
            run.trained = run.rows() > run.rows_before
            if run.trained:
                self.estimate([run])
            how = f"done in {took:.0f} s" if run.trained else "was finished"
            self.line(f"{run.name} {how}: validation loss {study_table.number(result['val_loss'])}")

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
        """The losses: a line of each run stays now and then, one is written over."""
        rows = [(run, study.last_row(run.folder)) for run in self.active]
        for run, row in rows:
            if row and row["step"] * LINES // run.iters > run.told:
                run.told = row["step"] * LINES // run.iters
                self.line(run.progress(row))
        if self.live and rows:
            text = " | ".join(run.progress(row) for run, row in rows)
            sys.stdout.write("\r\033[K" + text[:columns()])
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
