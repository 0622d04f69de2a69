"""One cell of an ablation: the same model trained and scored with every seed, several at once."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from fdm import compute, data, evaluation, provenance, training
from fdm.files import digest, root, write_text
from fdm.profiles import Profile


def _checkpoints(profile: Profile, run: str) -> Path:
    return profile.build / "checkpoints" / run.rpartition("-")[0] / run


def _train(profile: Profile, run: str) -> None:
    dataset = data.load(profile.build / "dataset.safetensors")
    folder, logs = _checkpoints(profile, run), profile.build / "logs" / run
    training.train(profile, run, dataset, folder, logs, root() / "work", compute.device())


def _score(profile: Profile, run: str) -> pd.DataFrame:
    dataset = data.load(profile.build / "dataset.safetensors")
    folder, reference = _checkpoints(profile, run), profile.build / "reference.safetensors"
    return evaluation.evaluate(profile, run, dataset, folder, reference, root() / "work", compute.device())


def _start(threads: int, log: Path) -> None:
    """Set up a process: its threads, and a file for what it would write to the terminal, where bars would mix."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's, which would otherwise take all cores in each process
    sys.stderr = log.open("a", buffering=1)


def at_once(profile: Profile) -> int:
    """How many runs are computed at once: one for each core that their threads leave, and no more than seeds."""
    return max(1, min(len(profile.seeds), (os.cpu_count() or 1) // profile.threads))


def measure(profile: Profile, cell: str) -> pd.DataFrame:
    """Train and score every seed of a cell; the measurements go to results/<profile>/runs/<cell>/measurements.csv.

    Runs share nothing but the data, so that their number at once changes no result. What is finished when one fails or
    is killed is kept, and taken up by the next call. Returns the measurements, with the cell's name.
    Raises FdmError for a cell that the profile does not have, and the sentence of a run that failed.
    """
    runs, started = profile.seeds_of(cell), time.time()
    fork = multiprocessing.get_context("fork")  # which spares each process the seconds of importing torch
    log = root() / "work" / f"{cell}.log"
    log.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(at_once(profile), fork, _start, (profile.threads, log)) as pool:
        bar = tqdm(total=2 * len(runs), desc=cell, unit="task")
        waiting = {pool.submit(_train, profile, run): run for run in runs}
        scores: dict[Future, str] = {}
        tables: dict[str, pd.DataFrame] = {}
        try:
            for trained in as_completed(waiting):
                trained.result()
                bar.update()
                scores[pool.submit(_score, profile, waiting[trained])] = waiting[trained]
            for scored in as_completed(scores):
                tables[scores[scored]] = scored.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    bar.close()
    table = pd.concat([tables[run] for run in runs], ignore_index=True)
    table.insert(0, "cell", cell)
    folder = profile.results / "runs" / cell
    losses = []
    for run in runs:
        log = profile.build / "logs" / run / "plots" / "metrics" / "loss.tsv"
        losses.append(pd.read_csv(log, sep="\t").rename(columns={"step": "images"}).assign(run=run))
    write_text(folder / "loss.csv", pd.concat(losses).to_csv(index=False))
    text = table.to_csv(index=False)
    write_text(folder / "measurements.csv", text)
    path = profile.results / "provenance" / f"{cell}.json"
    provenance.record(path, digest(text), started, cell=cell, parameters=profile.cells[cell].model_dump())
    return table
