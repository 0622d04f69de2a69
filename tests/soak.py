"""A day's work in an hour: the smoke pipeline, stopped again and again in every way, must end in the same bits.

`python -m tests.soak` (make soak) computes the pipeline once undisturbed, in a copy of this checkout. Then it is begun
again and again, stopped after a random time, and gone on with, as a user would. Whenever it comes to its end, all
results and weights must have the bits of the undisturbed one, but for seconds that were measured; then everything is
removed, and it starts anew. No finished training may be lost on the way, and what ends by itself for want of disk must
say so in a sentence. The disk is a file system in memory, which is filled and made read-only: both need root, and are
left out without it.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from tqdm import tqdm

from .scratch import RESULTS, SMOKE, Scratch

LONGEST = 45.0  # seconds after which a run is stopped at the latest
PATIENCE = 120.0  # seconds in which a run must end that was asked to, or that cannot write
MADE = ("build/smoke", "work", RESULTS, "profiles/smoke/dvc.lock")
# What shows seconds of this very run, and the lock, which has its hashes. All of it is made from results/smoke/systems,
# which is compared without its seconds.
TIMED = ("by_evaluations.png", "by_evaluations.svg", "07_systems.ipynb", "moments.csv", "moments.md", "moments.tex",
         "quality.csv", "quality.md", "quality.tex", "dvc.lock")  # fmt: skip


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


class Soak:
    """The study that is stopped, and what was found."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.study, self.random = Scratch(folder), random.Random(seed)
        self.log, self.said = folder.parents[1] / "log.txt", Counter[str]()  # beside the disk, which may be full
        assert self.start().wait() == 0, self.log.read_text()[-3000:]
        self.bits = self.hashes()
        self.remove()
        self.ways = [self.killed, self.asked, self.clock_set_back]
        if os.geteuid() == 0:
            self.ways += [self.full_disk, self.read_only]

    def start(self) -> subprocess.Popen:
        """Start the pipeline, or go on with it, in a group of its own."""
        for lock in (self.study.path / ".dvc" / "tmp").glob("rwlock"):  # as make repro does
            if not lock.stat().st_size:
                lock.unlink()
        with self.log.open("w") as log:
            return subprocess.Popen(
                ["dvc", "repro", SMOKE], cwd=self.study.path, env=self.study.env | {"TQDM_DISABLE": "1"}, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def trained(self) -> set[str]:
        """Networks of trainings that have ended."""
        return {str(path) for path in self.study.path.glob("build/smoke/checkpoints/*/experiment.json")}

    def signal(self, process: subprocess.Popen, number: int) -> None:
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            try:
                each.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def killed(self, process: subprocess.Popen) -> None:
        """SIGKILL, to all processes, or to one of them and then to what did not end by that."""
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        if self.random.random() < 0.5:
            self.random.choice(family).kill()
            time.sleep(1)
        if process.poll() is None:
            self.signal(process, signal.SIGKILL)

    def asked(self, process: subprocess.Popen) -> None:
        """SIGTERM, as from a scheduler."""
        self.signal(process, signal.SIGTERM)

    def clock_set_back(self, process: subprocess.Popen) -> None:
        """What is there comes from the future; then SIGKILL."""
        self.signal(process, signal.SIGKILL)
        process.wait()
        ahead = time.time() + 86_400 * self.random.random()
        for name in MADE:
            for path in (self.study.path / name).rglob("*"):
                os.utime(path, (ahead, ahead))

    def full_disk(self, process: subprocess.Popen) -> None:
        """Nothing more can be written until it has ended."""
        ballast = self.study.path / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], stderr=subprocess.DEVNULL)
        self.ends(process)
        ballast.unlink()

    def read_only(self, process: subprocess.Popen) -> None:
        """The results, or what is made on the way, cannot be written until it has ended."""
        folder = self.study.path / self.random.choice(MADE[:3])
        folder.mkdir(parents=True, exist_ok=True)
        mount("--bind", str(folder), str(folder))
        mount("-o", "remount,bind,ro", str(folder))
        self.ends(process)
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def ends(self, process: subprocess.Popen) -> None:
        """Wait for a process that cannot write; count what it says."""
        try:
            failed = process.wait(PATIENCE) != 0
        except subprocess.TimeoutExpired:
            self.said["it needed no disk"] += 1
            return self.signal(process, signal.SIGKILL)
        text = self.log.read_text(errors="replace")
        how = "it ended well" if not failed else "a sentence" if "fdm: " in text else "no sentence of ours"
        self.said[how] += 1
        if how == "no sentence of ours":
            tqdm.write("\n".join(text.splitlines()[-4:]))

    def run(self, stops: int) -> Counter[str]:
        """Stop it so often; returns how often in each way. Raises AssertionError for what is lost or other."""
        done, whole = Counter[str](), 0
        bar = tqdm(range(stops), unit="stop")
        for _ in bar:
            bar.set_postfix(done | self.said, whole=whole)
            before, process = self.trained(), self.start()
            way = self.random.choice(self.ways)
            try:
                code = process.wait(self.random.uniform(0, LONGEST))
            except subprocess.TimeoutExpired:
                way(process)
                process.wait()
                done[way.__name__.replace("_", " ")] += 1
            else:
                assert code == 0, self.log.read_text()[-3000:]
                whole += 1
                self.compare()
                self.remove()
                continue
            assert before <= self.trained(), "a finished training was lost"
        assert self.start().wait() == 0, self.log.read_text()[-3000:]
        self.compare()
        done["whole runs, all of the same bits"] = whole + 1
        return done

    def remove(self) -> None:
        for path in map(self.study.path.joinpath, MADE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def hashes(self) -> dict[str, str]:
        """Hash of every result and of all weights, without the seconds that were measured."""
        found = {name: of for name, of in self.study.hashes(provenance=False).items() if Path(name).name not in TIMED}
        for path in (self.study.path / RESULTS / "systems").glob("*.csv"):
            lines = [line for line in path.read_text().splitlines() if ",seconds," not in line]
            found[str(path.relative_to(self.study.path))] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        build = self.study.path / "build" / "smoke"
        weights = [*build.glob("checkpoints/*/*.safetensors"), *build.glob("heads/*/*.safetensors")]
        return found | {str(path.relative_to(build)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}

    def compare(self) -> None:
        found = self.hashes()
        other = sorted(name for name in found.keys() | self.bits.keys() if found.get(name) != self.bits.get(name))
        assert not other, f"other bits: {', '.join(other[:5])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak") as temporary:
        disk = Path(temporary) / "disk"
        disk.mkdir()
        if os.geteuid() == 0:
            mount("-t", "tmpfs", "-o", "size=1G", "tmpfs", str(disk))
        try:
            soak = Soak(disk / "study", given.seed)
            for way, times in (soak.run(given.stops) | soak.said).items():
                print(f"{times:5}  {way}")
        finally:
            if os.geteuid() == 0:
                subprocess.run(["umount", "-l", str(disk)], check=True)


if __name__ == "__main__":
    main()
