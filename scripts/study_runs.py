# SPDX-License-Identifier: MIT
"""The training runs of a study: started, watched, stopped."""
import ctypes
import fcntl
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
PR_SET_PDEATHSIG = 1         # <linux/prctl.h>
PATIENCE = 30                # seconds that a run of a study that was killed may take to checkpoint
WIDTH = 80                   # of a terminal that does not say


def say(text):
    print(text, flush=True)


def columns():
    """The longest line that the terminal does not wrap."""
    try:
        return (os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH) - 1
    except OSError:
        return WIDTH - 1


def duration(seconds):
    """Time left, for people."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def end_with_us():
    """Of a run: where the study is killed it checkpoints and ends, as by Ctrl-C."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_for(folder):
    """Until no run is in a folder; the next one says what is wrong where that takes too long."""
    if not os.path.isdir(folder):
        return
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(int(PATIENCE / POLL)):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(POLL)
    os.close(fd)


class Run:
    """One training run of an arm; @state is its line in study.json."""

    def __init__(self, arm, state, folder, first_seed=True, data=None):
        self.arm = self.entry = arm
        self.state, self.seed, self.folder = state, state["seed"], folder
        self.iters, self.threads = arm.iters, state["threads"]
        self.name = arm.title + ("" if first_seed else f" seed {self.seed}")
        self.log = self.folder + ".log"
        self.data = data            # goes before the path of the configuration
        self.process = self.slot = None
        self.told = 0               # lines of loss that stay
        self.trained = False        # by this study, now
        self.began = self.rows_before = self.logged = 0

    def start(self, slot):
        """In a session of its own, so that Ctrl-C reaches it once: through us."""
        env = dict(os.environ, OMP_WAIT_POLICY="passive")
        self.slot = slot
        if slot.gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = slot.gpu
        command = [self.arm.binary, "train", "--out", self.folder, "--seed", str(self.seed),
                   "--threads", str(self.threads), "--label",
                   f"{self.arm.title}: {self.arm.label}"]
        wait_for(self.folder)
        with open(self.log, "ab") as log:
            self.logged = log.tell()
            self.process = subprocess.Popen(
                command + (["--data", self.data] if self.data else []),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                start_new_session=True, preexec_fn=end_with_us)
        self.began = time.monotonic()
        self.rows_before = self.rows()
        self.told = self.rows_before * LINES // self.iters

    def rows(self):
        """Training steps in the log."""
        row = study.last_row(self.folder)
        return row["step"] if row else 0

    def work(self):
        """Operations that are left."""
        return self.arm.flops * (self.iters - self.rows())

    def seconds_per_step(self):
        """Of this process, or None before it has a few steps behind it."""
        done = self.rows() - self.rows_before
        if done < min(ESTIMATE_ROWS, self.iters - self.rows_before):
            return None
        return (time.monotonic() - self.began) / max(done, 1)

    def said(self):
        """Lines of this process in the log."""
        with open(self.log, "rb") as log:
            log.seek(self.logged)
            return log.read().decode(errors="replace").strip().splitlines()

    def finish(self):
        """Raise where the run failed."""
        status = self.process.returncode
        if status:
            lines = self.said() or ["no output"]
            last = ([x for x in lines if x.startswith("tenon: ")] or lines)[-1].removeprefix("tenon: ")
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
    """
    Runs a list of runs, one in each slot. @changed is called when a run's state changes, @skip
    says of a run why it need not start any more, or None.
    """

    def __init__(self, runs, slots, changed=lambda: None, skip=lambda run: None):
        self.waiting, self.active, self.free = list(runs), [], list(slots)
        self.jobs, self.total = len(slots), len(runs)
        self.changed, self.skip = changed, skip
        self.estimated = False
        self.rate = None            # seconds an operation, of one slot
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

    def mark(self, run, state, note=""):
        run.state.update(state=state, note=note, steps=run.rows(), threads=run.threads)
        if run.trained:
            run.state["seconds"] += round(time.monotonic() - run.began, 1)
        self.changed()

    def fill(self):
        while self.waiting and self.free:
            run = self.waiting.pop(0)
            reason = self.skip(run)
            if reason:
                self.line(f"{run.name} is not run: {reason}")
                self.mark(run, "stopped", reason)
                continue
            self.line(f"{run.name} starts ({run.threads} thread{'s' * (run.threads > 1)})")
            self.active.append(run)
            run.state["started"] = run.state["started"] or time.strftime("%Y-%m-%d %H:%M:%S")
            self.mark(run, "running")
            run.start(self.free.pop(0))
            if self.stopped:
                run.process.send_signal(self.stopped)

    def reap(self):
        for run in [r for r in self.active if r.process.poll() is not None]:
            self.active.remove(run)
            self.free.append(run.slot)
            run.trained = run.rows() > run.rows_before
            if self.stopped:
                self.mark(run, "done" if study.load_result(run.folder) else "waiting")
                continue
            try:
                run.finish()
            except StudyError as error:
                self.mark(run, "failed", str(error))
                raise
            result = study.load_result(run.folder)
            took = time.monotonic() - run.began
            if run.trained:
                self.estimate([run])
            how = f"done in {took:.0f} s" if run.trained else "was finished"
            self.line(f"{run.name} {how}: validation loss {study_table.number(result['val_loss'])}")
            self.mark(run, "done")

    def line(self, text):
        say(("\r\033[K" if self.live else "") + text)

    def left(self):
        """Seconds to the end of the study, or None before a run has a few steps behind it."""
        speeds = [(run.seconds_per_step(), run) for run in self.active]
        known = [s / run.arm.flops for s, run in speeds if s is not None]
        if known:
            self.rate = sum(known) / len(known)
        if self.rate is None:
            return None
        return self.rate * sum(r.work() for r in self.active + self.waiting) / self.jobs

    def estimate(self, measured):
        """Once, when every run of @measured has a few steps behind it; time goes with FLOPs."""
        seconds = [run.seconds_per_step() for run in measured]
        if self.estimated or not measured or None in seconds:
            return
        self.rate = sum(s / r.arm.flops for s, r in zip(seconds, measured)) / len(seconds)
        work = sum(run.work() for run in self.active + self.waiting)
        total = time.monotonic() - self.began + self.rate * work / self.jobs
        self.line(f"estimated total time: {total:.0f} s")
        self.estimated = True

    def head(self):
        """Of several runs: how many are done, and the time that the others take."""
        if self.total <= self.jobs:
            return ""
        left = self.left()
        done = self.total - len(self.waiting) - len(self.active)
        return f"{done} of {self.total} runs" + (f", {duration(left)} left" if left else "") + " | "

    def show(self):
        """The losses: a line of each run stays now and then, one is written over."""
        rows = [(run, study.last_row(run.folder)) for run in self.active]
        for run, row in rows:
            if row and row["step"] * LINES // run.iters > run.told:
                run.told = row["step"] * LINES // run.iters
                self.line(run.progress(row))
        if self.live and rows:
            text = self.head() + " | ".join(run.progress(row) for run, row in rows)
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
                self.mark(run, "waiting")
            raise
        if self.stopped:
            raise StudyError("stopped; the same command resumes", 128 + self.stopped)
