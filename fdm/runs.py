"""Train and score the runs of a profile, several at once where there are cores for it.

What is computed here stays under build/<profile>/: checkpoints, logs, and this machine's measurements. What is on
record is committed: training/<part>.csv, runs/<part>/ and networks/ under results/<profile>/. A part is a run, or in an
ablation a cell with all its seeds. Of a part that agrees with its record nothing is written; one that does not is
written, and named (see `agreement`).
"""

import functools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from fdm import agreement, cards, checkpoints, closure, compute, data, evaluation, provenance, study, training
from fdm.errors import FdmError
from fdm.files import digest, replace, root, write_json, write_text
from fdm.profiles import SNAPSHOTS, Profile

KEPT = 2_000_000  # bytes of a network that is kept in git

SOURCE = closure.listing("training", "evaluation")  # as it was when it was imported, and so computes

_count: Any = None  # in a process of the pool: what has been done so far, by all of them


def at_once(profile: Profile, processes: int) -> int:
    """How many runs are computed at once: one for each core, where each has one thread on a CPU; else one.

    Processes of several threads could hang, as they are forked from one whose own threads have computed.
    """
    if compute.device() != "cpu" or processes > 1 or profile.threads > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(len(profile.runs), cores)


def _start(threads: int, log: Path, count: Any) -> None:
    """Set up a process: its threads, and a file for what it would write to the terminal, where bars would mix."""
    global _count
    _count = count
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's, which would otherwise take all cores in each process
    sys.stderr = log.open("a", buffering=1)


def _advance(n: int) -> None:
    with _count.get_lock():
        _count.value += n


def _unchanged() -> None:
    """Raise FdmError where the source is no longer that which computes: results would be named by the new one."""
    if closure.listing("training", "evaluation") != SOURCE:
        raise FdmError(
            "The source in fdm/ has changed while it computed; run dvc repro again, which names what it uses."
        )


def each(
    profile: Profile,
    work: Callable[[Profile, str, Callable[[int], None] | None], Any],
    done: Callable[[str, Any], None],
    processes: int,
    total: int,
    unit: str,
) -> None:
    """Call `work(profile, run, advance)` for every run, several at once, and `done(run, value)` as each ends.

    `total` is the sum of what `work` tells `advance`. What others finished when one fails or is killed is kept.
    Raises the FdmError of a run that failed.
    """
    n = at_once(profile, processes)
    if n == 1:
        torch.set_num_threads(profile.threads)
        for name in profile.runs:
            done(name, work(profile, name, None))
        return
    fork = multiprocessing.get_context("fork")  # which spares each process the seconds of importing torch
    count, log = fork.Value("q", 0), root() / "work" / f"{profile.profile}.log"
    log.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(n, fork, _start, (profile.threads, log, count)) as pool:
        waiting = {pool.submit(work, profile, name, _advance): name for name in profile.runs}
        # Only now, as the processes that were forked would have its locks.
        bar = tqdm(total=total, unit=unit, unit_scale=True, desc=f"{profile.profile}, {n} runs at once")
        try:
            while waiting:
                ended, _ = wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
                bar.update(count.get_obj().value - bar.n)  # without its lock, which a killed process may hold
                for future in ended:
                    done(waiting.pop(future), future.result())
                    bar.set_postfix_str(
                        f"{len(profile.runs) - len(waiting)} of {len(profile.runs)} runs", refresh=False
                    )
        except BrokenProcessPool as error:
            raise FdmError(
                "A process that computed a run was killed, for want of memory perhaps; what was finished is kept, and "
                "dvc repro goes on from there."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            bar.close()


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove what a folder holds of runs that the profile no longer has."""
    for path in set(folder.glob("*")) - {folder / name for name in names}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say(profile: Profile, what: str, where: str, kept: list[str]) -> None:
    """One line on what agreed with the record and what did not."""
    renewed = [part for part in profile.parts if part not in kept]
    agreed = f"{what}: {len(kept)} of {len(profile.parts)} agree with results/{profile.profile}/{where}, left as it is"
    print(agreed + (f"; written there: {', '.join(renewed)}" if renewed else ""), file=sys.stderr)


# ------------------------------------------------------------------------------------------------------ training


def checkpoints_of(profile: Profile, run: str) -> Path:
    """Folder of a run's checkpoints, as they were trained here or fetched."""
    return profile.build / "checkpoints" / run


def dataset_of(profile: Profile) -> data.Dataset:
    """The prepared data set; raises FdmError where it is missing or damaged."""
    return data.load(profile.build / "dataset.safetensors")


def _train(profile: Profile, run: str, advance: Callable[[int], None] | None) -> dict[str, Any]:
    folder, logs, work = checkpoints_of(profile, run), profile.build / "logs" / run, root() / "work"
    _unchanged()
    trained = training.train(profile, run, dataset_of(profile), folder, logs, work, compute.device(), advance)
    try:
        _unchanged()
    except FdmError:
        (folder / checkpoints.EXPERIMENT).unlink(missing_ok=True)  # so that it is trained again
        raise
    return trained


def train(profile: Profile) -> pd.DataFrame:
    """Train every run whose checkpoints are not there; returns the loss along the training, as it is on record.

    Columns: run, experiment, images, loss, lr. Raises FdmError as `training.train` does.
    """
    par, dataset = profile.training, dataset_of(profile)
    assert par is not None  # a profile of published networks has no such stage
    _remove_others(profile.build / "checkpoints", profile.runs)
    found: dict[str, dict[str, Any]] = {}
    total = len(profile.runs) * training.steps(par) * par.batch
    each(profile, _train, found.__setitem__, par.processes, total, "img")
    kept, tables = [], []
    for part, runs in profile.parts.items():
        histories = [
            pd.DataFrame(found[run]["history"])[["images", "loss", "lr"]].assign(
                run=run, experiment=training.experiment(profile, run, dataset)
            )
            for run in runs
        ]
        here = agreement.read_back(pd.concat(histories)[["run", "experiment", "images", "loss", "lr"]])
        path = profile.results / "training" / f"{part}.csv"
        if agreement.losses(path, here):
            kept.append(part)
        else:
            write_text(path, here.to_csv(index=False))
        tables.append(study.read(path))
    _say(profile, "training losses", "training", kept)
    _remove_others(profile.results / "training", [f"{part}.csv" for part in profile.parts])
    return pd.concat(tables, ignore_index=True)


# ------------------------------------------------------------------------------------------------------- scoring


def reference(profile: Profile) -> pd.DataFrame:
    """Compute the features of the real images, and the floor of each metric; returns the floor as it is on record."""
    torch.set_num_threads(profile.threads)
    folder = profile.build / "reference"
    path, dataset = folder / "features.safetensors", dataset_of(profile)
    evaluation.make_reference(profile, dataset, path, compute.device())
    _, everything, made_by = evaluation.load_reference(profile, path)
    about = {"shape": [*dataset.shape], "classes": dataset.classes}
    write_json(folder / "reference.json", made_by | about)
    floor, record = (
        agreement.read_back(evaluation.calibrate(profile, everything, made_by)),
        profile.results / "calibration.csv",
    )
    write_text(profile.build / "here" / "calibration.csv", floor.to_csv(index=False))
    if not agreement.floor(record, floor):
        write_text(record, floor.to_csv(index=False))
    return study.read(record)


def here(profile: Profile, part: str) -> Path:
    """Folder of a part's measurements as they were made on this machine."""
    return profile.build / "here" / "runs" / part


def _score(profile: Profile, run: str, advance: Callable[[int], None] | None) -> pd.DataFrame:
    folder, memory = checkpoints_of(profile, run), profile.build / "scores" / f"{run}.json"
    reference, device = profile.build / "reference" / "features.safetensors", compute.device()
    _unchanged()
    rows = evaluation.evaluate(profile, run, dataset_of(profile), folder, reference, memory, device, advance)
    try:
        _unchanged()
    except FdmError:
        memory.unlink(missing_ok=True)
        raise
    if not profile.cells:
        evaluation.pictures(profile, folder, here(profile, run) / "pictures.safetensors", device)
    return rows


def evaluate(profile: Profile) -> pd.DataFrame:
    """Score every run; returns the measurements of all, as they are on record.

    What was measured here goes to build/<profile>/here/runs/, and on record where the record is of something else or
    does not agree: each part as soon as its runs are scored. Raises FdmError as `evaluation.evaluate` does.
    """
    found: dict[str, pd.DataFrame] = {}
    kept: list[str] = []
    started = time.time()

    def done(run: str, rows: pd.DataFrame) -> None:
        found[run] = rows
        (part,) = (part for part, runs in profile.parts.items() if run in runs)
        if set(profile.parts[part]) <= found.keys() and _settle(profile, part, found, started):
            kept.append(part)

    total = sum(s.nfe * s.samples for run in profile.runs for s in evaluation.settings(profile, run))
    each(profile, _score, done, profile.evaluation.processes, total, "eval")
    _say(profile, "measurements", "runs", kept)
    _remove_others(profile.results / "runs", profile.parts)
    if not profile.cells and not profile.published:
        (profile.results / "networks").mkdir(parents=True, exist_ok=True)  # which stays empty for large networks
    _remove_others(profile.results / "networks", [f"{run}.{end}" for run in profile.runs for end in cards.ENDS])
    return pd.concat([study.read(profile.results / "runs" / part / "measurements.csv") for part in profile.parts])


def _settle(profile: Profile, part: str, found: dict[str, pd.DataFrame], started: float) -> bool:
    """Put a part's measurements, pictures and network on record, unless the record agrees; returns whether it does."""
    rows = pd.concat([found[run] for run in profile.parts[part]], ignore_index=True)
    if profile.cells:
        rows.insert(0, "cell", part)
    measured, source = agreement.read_back(rows), here(profile, part)
    text = measured.to_csv(index=False)
    write_text(source / "measurements.csv", text)
    path = profile.results / "runs" / part / "measurements.csv"
    if agreement.measurements(profile, path, measured) and _whole(profile, part):
        return True
    write_text(path, text)
    if not profile.cells:
        _copy(source / "pictures.safetensors", path.with_name("pictures.safetensors"))
        network = checkpoints_of(profile, part) / checkpoints.snapshot_name(SNAPSHOTS[-1])
        if _in_git(profile, part):
            _copy(network, profile.results / "networks" / f"{part}.safetensors")
            write_text(profile.results / "networks" / f"{part}.md", cards.card(profile, part, measured))
    seconds = sum(_seconds(profile, run) for run in profile.parts[part])
    provenance.record(
        profile.results / "provenance" / f"{part}.json", digest(text), started, part=part, training_seconds=seconds
    )
    return False


def _in_git(profile: Profile, part: str) -> bool:
    """Whether the last network of a part is kept in git: one that was trained here, and is small."""
    network = checkpoints_of(profile, part) / checkpoints.snapshot_name(SNAPSHOTS[-1])
    return not profile.published and network.stat().st_size <= KEPT


def _whole(profile: Profile, part: str) -> bool:
    """Whether the record of a part has all its files, and its network is the one that was scored."""
    if profile.cells:
        return True
    folder, network = profile.results / "runs" / part, profile.results / "networks" / f"{part}.safetensors"
    small = _in_git(profile, part)
    try:
        weights = checkpoints.load(network)[1]["weights"] if small else None
        rows = study.read(folder / "measurements.csv")
    except (FdmError, OSError, KeyError):
        return False
    scored = set(rows[rows["duration"] == 1]["checkpoint"].astype(str))
    return (folder / "pictures.safetensors").is_file() and (not small or scored == {str(weights)[:12]})


def _seconds(profile: Profile, run: str) -> float:
    told = profile.build / "logs" / run / "finished.json"
    return round(json.loads(told.read_text())["seconds"], 1) if told.exists() else 0.0


def _copy(source: Path, target: Path) -> None:
    replace(target, functools.partial(shutil.copyfile, source))
