"""dvc repro with an outlook: at each stage, how many are left and about how long they take on this machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable

from fdm.files import FdmError, root
from fdm.repro import pipeline, plan
from fdm.study.profiles import Profile

BEGINS = re.compile(r"Running stage '(?:.*:)?(.+)'")
SKIPPED = re.compile(r"Stage '(?:.*:)?(.+)' (?:didn't change|is cached)")

MEASURED = ("train", "evaluate", "heads", "systems", "restoration")  # stages whose time `expected` tells


def expected(profile: Profile) -> dict[str, float]:
    """Seconds that training, and the stages that ask networks, take on this machine, measured for some seconds.

    Where published networks are fetched, and for the other stages, nothing is known before.
    """
    dataset = plan.dataset_of(profile)
    networks = plan.networks_of(profile, dataset)
    out: dict[str, float] = {}
    for of in plan.seconds(profile, plan.rates(profile, dataset, networks)).values() if networks else ():
        for stage, seconds in of.items():
            out[stage] = out.get(stage, 0.0) + seconds / plan.side_by_side(profile)
    return {stage: seconds for stage, seconds in out.items() if seconds}


class Outlook:
    """What is left of a pipeline, as its stages begin and end; `now` are seconds of any one clock.

    What no measurement tells, such as a notebook that only draws, is taken to last as the mean of such stages did. What
    was measured is scaled by how long the measured stages have taken in truth.
    """

    def __init__(self, stages: Iterable[str], expected: dict[str, float]) -> None:
        self.all = [*stages]
        self.expected = expected
        self.left, self.took = [*self.all], dict[str, float]()
        self.began: tuple[str, float] | None = None

    def skip(self, stage: str) -> None:
        """A stage is current, and is not run."""
        self.left = [each for each in self.left if each != stage]

    def begin(self, stage: str, now: float) -> str:
        """A stage begins, so the one before has ended; returns what is to be told."""
        if self.began:
            self.took[self.began[0]] = now - self.began[1]
        self.skip(stage)
        self.began = stage, now
        return f"[{self.all.index(stage) + 1} of {len(self.all)}] {stage}; {self._time([stage, *self.left])}"

    def _time(self, stages: list[str]) -> str:
        known = [stage for stage in self.took if stage in self.expected]
        others = [seconds for stage, seconds in self.took.items() if stage not in self.expected]
        wanted = [self.expected[stage] for stage in stages if stage in self.expected]
        if not others:
            return f"more than {plan.hours(sum(wanted))} left" if wanted else "time left not known yet"
        scale = sum(self.took[each] for each in known) / sum(self.expected[each] for each in known) if known else 1.0
        seconds = scale * sum(wanted) + (len(stages) - len(wanted)) * sum(others) / len(others)
        return f"about {plan.hours(seconds)} left"


def _waits(profile: Profile) -> bool:
    """Whether a stage that takes long is to run, so that measuring what it will take is worth the time."""
    try:
        return bool({*MEASURED} & {*plan.stages(profile)})
    except FdmError:  # DVC cannot tell before the first stage has run
        return True


def run(profile: Profile) -> None:
    """Run the pipeline by dvc repro, as it is where stdout is no terminal; raises FdmError when it fails."""
    command = [sys.executable, "-m", "dvc", "repro", str(pipeline.file_of(profile))]
    if _watched(profile, command) if sys.stdout.isatty() else subprocess.run(command, cwd=root()).returncode:
        raise FdmError("The pipeline has stopped; the lines above say why. make repro goes on from there.")


def _watched(profile: Profile, command: list[str]) -> int:
    """The exit code of dvc repro, whose lines are passed on, with a line more where a stage begins."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # bars are on stderr, which stays the terminal
    outlook = Outlook(pipeline.stages(profile), expected(profile) if _waits(profile) else {})
    child = subprocess.Popen(command, cwd=root(), env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            if begins := BEGINS.match(line):
                print(outlook.begin(begins[1], time.monotonic()), flush=True)
            elif skipped := SKIPPED.match(line):
                outlook.skip(skipped[1])
        return child.wait()
    except KeyboardInterrupt:  # which DVC gets as well, and ends what it runs
        child.wait()
        raise
