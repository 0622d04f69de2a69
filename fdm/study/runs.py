"""Train and score the runs of a profile, several at once where there are cores for it.

What is computed here stays under build/<profile>/: checkpoints, logs, and this machine's measurements. The record is
committed: training/<cell>.csv, runs/<cell>/ and networks/ under results/<profile>/. Where a cell agrees with its record
nothing is written; one that does not is written, and named (see `agreement`).
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from fdm.data import datasets, downloads, sources
from fdm.files import FdmError, digest, replace, root, sha256, write_json, write_text
from fdm.model import checkpoints, generator, released
from fdm.params import SNAPSHOTS, FewStepsParams, snapshot_name
from fdm.process.frameworks import FRAMEWORKS
from fdm.process.joint import JOINT
from fdm.study import (
    agreement,
    cards,
    closure,
    errors,
    few_steps,
    heads,
    measure,
    measurements,
    networks,
    provenance,
    restoration,
    systems,
)
from fdm.study.profiles import OWN, Profile
from fdm.training import augmentation, loop, processes

# What a run's description has elsewhere, or not at all.
NAMELESS = {"cell", "seeds", "source", "start", "given", "few_steps", *OWN} - {"lr"}
KEPT = 2_000_000  # bytes of a network that is kept in git

PICTURES = ".safetensors"  # of a comparison's restorations, beside its table
Advance = Callable[[int], None] | None  # is told of images, or of evaluations, as they are worked on


def _source() -> str:
    return closure.listing(*itertools.chain(*closure.CLOSURES.values()), "samplers")


SOURCE = _source()  # as it was when it was imported, and so computes

_count: Any = None  # in a process of the pool: what has been done so far, by all of them


def at_once(profile: Profile, count: int) -> int:
    """How many runs are computed at once: one for each core, where each has one thread on a CPU; else one.

    Processes of several threads could hang, as they are forked from one whose own threads have computed.
    """
    if processes.device() != "cpu" or count > 1 or profile.threads > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(len(profile.runs), cores)


def _start(threads: int, log: Path, count: Any, parent: int) -> None:
    """Set up a process: its threads, and a log file in place of the terminal, where progress bars would mix."""
    global _count
    _count = count
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's, which would otherwise take all cores in each process
    sys.stderr = log.open("a", buffering=1)


def _end_with(parent: int) -> None:
    """End this process when its parent has been killed, which cannot tell it to: nobody would take its results."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _advance(n: int) -> None:
    with _count.get_lock():
        _count.value += n


def _unchanged() -> None:
    """Raise FdmError when the source has changed since it was imported: results would be named by the new one."""
    if _source() != SOURCE:
        raise FdmError(
            "The source in fdm/ has changed while it computed; run dvc repro again, which names what it uses."
        )


@contextlib.contextmanager
def _as_imported(*memories: Path) -> Iterator[None]:
    """Compute with the source as it was imported; what is remembered in the meantime goes where it has changed."""
    _unchanged()
    yield
    try:
        _unchanged()
    except FdmError:
        for memory in memories:
            memory.unlink(missing_ok=True)
        raise


def each(
    profile: Profile,
    runs: Iterable[str],
    work: Callable[[Profile, str, Advance], Any],
    done: Callable[[str, Any], None],
    count: int,
    total: int,
    unit: str,
    scheduler: str | None = None,
) -> None:
    """Call `work(profile, run, advance)` for each of the runs, several at once, and `done(run, value)` as each ends.

    `count` is the number of processes that one run takes. `total` is the sum of what `work` tells `advance`. With the
    address of a Dask `scheduler` its workers compute, started in the project's folder on a disk that all share, and
    those that are lost are replaced by others. When a run fails, what others finished is kept. Raises the FdmError of
    a run that failed, and for a scheduler that does not answer.
    """
    runs = [*runs]
    if scheduler:
        with _cluster(scheduler) as pool:
            waiting = {pool.submit(_remote, work, profile, name): name for name in runs}
            _gather(pool, waiting, done, tqdm(total=len(runs), unit="run", desc=f"{profile.profile}, on {scheduler}"))
        return
    n = min(at_once(profile, count), max(len(runs), 1))
    if n == 1:
        torch.set_num_threads(profile.threads)
        for name in runs:
            done(name, work(profile, name, None))
        return
    fork = multiprocessing.get_context("fork")  # which spares each process the seconds of importing torch
    counted, log = fork.Value("q", 0), root() / "work" / f"{profile.profile}.log"
    log.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(n, fork, _start, (profile.threads, log, counted, os.getpid())) as pool:
        waiting = {pool.submit(work, profile, name, _advance): name for name in runs}
        # Only now, as the processes that were forked would have its locks.
        bar = tqdm(total=total, unit=unit, unit_scale=True, desc=f"{profile.profile}, {n} runs at once")
        try:
            _gather(pool, waiting, done, bar, lambda: counted.get_obj().value)  # whose lock a killed process may hold
        except BrokenProcessPool as error:
            raise FdmError(
                "A process that computed a run was killed, for want of memory perhaps; what was finished is kept, and "
                "dvc repro goes on from there."
            ) from error


def _gather(
    pool: Executor, waiting: dict[Future, str], done: Callable[[str, Any], None], bar: tqdm,
    progress: Callable[[], int] | None = None,
) -> None:  # fmt: skip
    """Hand over what runs return as each ends; `progress` tells what has been done so far, or else runs are counted."""
    total = len(waiting)
    try:
        while waiting:
            ended, _ = wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
            for future in ended:
                done(waiting.pop(future), future.result())
            bar.update((progress() if progress else total - len(waiting)) - bar.n)
            bar.set_postfix_str(f"{total - len(waiting)} of {total} runs", refresh=False)
    except BaseException:
        for future in waiting:
            future.cancel()  # those that have not begun; the others are waited for
        raise
    finally:
        bar.close()


@contextlib.contextmanager
def _cluster(scheduler: str) -> Iterator[Executor]:
    """The executor of a Dask cluster; raises FdmError where there is none at the address."""
    from distributed import Client  # which takes a second to import

    try:
        client = Client(scheduler, timeout="20s")
    except (OSError, ValueError) as error:
        raise FdmError(
            f"There is no Dask scheduler at {scheduler} ({str(error).splitlines()[0]}); start one with dask scheduler, "
            "and workers in the project's folder with python -m dask worker."
        ) from error
    with client:
        yield client.get_executor()


def _remote(work: Callable[[Profile, str, Advance], Any], profile: Profile, run: str) -> Any:
    """Work on a run in a worker of a cluster, whose log needs no bar for each step."""
    with threadpool_limits(profile.threads):
        return work(profile, run, lambda n: None)


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove what a folder holds of runs that the profile no longer has."""
    for path in set(folder.glob("*")) - {folder / name for name in names}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say(profile: Profile, what: str, where: str, cells: Iterable[str], kept: list[str]) -> None:
    """One line on what agreed with the record and what did not."""
    cells = [*cells]
    renewed = [cell for cell in cells if cell not in kept]
    agreed = f"{what}: {len(kept)} of {len(cells)} cells agree with results/{profile.profile}/{where}, left as it is"
    print(agreed + (f"; written there: {', '.join(renewed)}" if renewed else ""), file=sys.stderr)


# ------------------------------------------------------------------------------------------------------ training


def dataset_of(profile: Profile) -> datasets.Dataset:
    """The prepared data set; raises FdmError where it is missing or damaged."""
    return datasets.load(profile.dataset_file)


def images(profile: Profile, name: str) -> int:
    """Images that a run is trained on, and those that a network draws in its training."""
    par = profile.parameters(name)
    return loop.steps(par) * par.batch


def specify(profile: Profile, name: str, dataset: datasets.Dataset) -> dict[str, Any]:
    """The sections `network`, `denoiser`, `run` and `training` of the description of a run's checkpoints.

    Raises FdmError for a run that is not trained here.
    """
    run, net = profile.run(name), profile.network
    if name not in profile.trained or net is None:
        raise FdmError(f"{name} is no network that is trained here: its source is {run.source}.")
    par, joint = profile.parameters(name), run.framework in JOINT
    channels, resolution, _ = dataset.shape
    of_model = {"framework"} if joint else {"framework", "kernel", "multiplier", "ve_multiplier", "tau", "variant"}
    of_model = of_model - {"variant"} | {"given"} if run.given else of_model
    augment_dim = 1 if run.variant == "radius embedded" else augmentation.LABELS if par.augment > 0 else 0
    return {
        "network": {
            "architecture": (FRAMEWORKS | JOINT)[run.framework].architecture,
            "resolution": resolution,
            "channels": channels * (JOINT[run.framework].channels if joint else 2 if run.given else 1),
            "label_dim": dataset.classes if profile.dataset.conditional else 0,
            "augment_dim": generator.LATENT if run.generates else augment_dim,
            "model_channels": run.model_channels or net.model_channels,
            "channel_mult": run.channel_mult or net.channel_mult,
            "num_blocks": net.num_blocks,
            "attn_resolutions": net.attn_resolutions,
            "dropout": net.dropout,
        },
        "denoiser": run.model_dump(include=of_model) | (_drawing(run.few_steps) if run.generates else {}),
        "run": run.model_dump(exclude=NAMELESS),
        "training": par.model_dump(exclude={"state_kimg"}),
    } | ({"few_steps": run.few_steps.model_dump()} if run.few_steps else {})


def _drawing(few: FewStepsParams | None) -> dict[str, Any]:
    """What a generator is told of its steps."""
    assert few is not None
    return {"steps": few.steps} | ({"noised_forward": True} if few.objective == "siddm ufo" else {})


def expected(profile: Profile, name: str, dataset: datasets.Dataset) -> dict[str, Any] | None:
    """What a checkpoint's description must say; of a published network, that it is of the run's model and data."""
    run, (channels, resolution, _) = profile.run(name), dataset.shape
    if run.source == "analytic":
        return None
    if name in profile.trained:
        return specify(profile, name, dataset)
    label_dim = dataset.classes if profile.dataset.conditional else 0
    return {
        "network": {"resolution": resolution, "channels": channels, "label_dim": label_dim},
        "denoiser": {"framework": run.framework, "kernel": run.kernel},
    }


def parent_of(profile: Profile, name: str) -> str | None:
    """The run that a run starts from, or None where it starts from fresh weights."""
    run = profile.run(name)
    return f"{run.start}-{run.seed}" if run.start else None


def experiment(profile: Profile, name: str, dataset: datasets.Dataset) -> str:
    """What a run's training is called: a hash of all that shapes the network, the same on every machine."""
    parent = parent_of(profile, name)
    shape = {
        "description": specify(profile, name, dataset), "dataset": dataset.sha256, "code": closure.identity("training"),
    }  # fmt: skip
    if profile.run(name).framework in JOINT:
        shape["joint"] = closure.identity("joint")
    if profile.run(name).given:
        shape["conditional"] = closure.identity("conditional")
    if profile.run(name).few_steps:
        shape["few-steps"] = closure.identity("few-steps")
    return digest(shape | ({"start": experiment(profile, parent, dataset)} if parent else {}))


def training_of(profile: Profile, name: str, dataset: datasets.Dataset) -> loop.Training:
    """A run of the profile as the training loop takes it."""
    parent, description = parent_of(profile, name), specify(profile, name, dataset)
    run = profile.run(name)
    return loop.Training(
        name, experiment(profile, name, dataset), description, run, profile.parameters(name), profile.threads,
        profile.checkpoints(parent) / snapshot_name(SNAPSHOTS[-1]) if parent else None,
    )  # fmt: skip


def _train(profile: Profile, run: str, advance: Advance) -> dict[str, Any]:
    dataset, folder = dataset_of(profile), profile.checkpoints(run)
    training, work = training_of(profile, run, dataset), root() / "work"
    _unchanged()
    trained = loop.train(training, dataset, folder, profile.logs(run), work, processes.device(), advance)
    try:
        _unchanged()
    except FdmError:
        (folder / checkpoints.EXPERIMENT).unlink(missing_ok=True)  # so that it is trained again
        raise
    return trained


def train(profile: Profile) -> pd.DataFrame:
    """Train every run whose checkpoints are not there; returns the loss along the training, as it is on record.

    Columns: run, experiment, images, loss, lr. Raises FdmError as `training.loop.train` does.
    """
    par, dataset = profile.training, dataset_of(profile)
    assert par is not None  # a profile that trains nothing has no such stage
    _remove_others(profile.build / "checkpoints", profile.runs)
    found: dict[str, dict[str, Any]] = {}
    for source in ("train", "finetune"):  # which starts from what the first have left
        names = [name for name, run in profile.trained.items() if run.source == source]
        total = sum(images(profile, name) for name in names)
        each(profile, names, _train, found.__setitem__, par.processes, total, "img")
    cells = list(dict.fromkeys(run.cell for run in profile.trained.values()))
    kept = [cell for cell in cells if _settle_losses(profile, cell, found, dataset)]
    _say(profile, "training losses", "training", cells, kept)
    _remove_others(profile.results / "training", [f"{cell}.csv" for cell in cells])
    tables = [measurements.read(profile.results / "training" / f"{cell}.csv") for cell in cells]
    return pd.concat(tables, ignore_index=True)


def _settle_losses(profile: Profile, cell: str, found: dict[str, dict[str, Any]], dataset: datasets.Dataset) -> bool:
    """Put the losses of a cell's training on record, unless the record agrees; returns whether it does."""
    histories = [
        pd.DataFrame(found[run]["history"])[["images", "loss", "lr"]].assign(
            run=run, experiment=experiment(profile, run, dataset)
        )
        for run in profile.runs_of(cell)
    ]
    here = agreement.read_back(pd.concat(histories)[["run", "experiment", "images", "loss", "lr"]])
    path = profile.results / "training" / f"{cell}.csv"
    if agreement.losses(path, here, profile.cells[cell].few_steps is not None):
        return True
    write_text(path, here.to_csv(index=False))
    return False


def train_launched(profile: Profile, name: str) -> Path:
    """Train one run in the processes that accelerate launched; returns the folder that `train` then takes it from.

    Raises FdmError where the run that it starts from has not been trained, or otherwise than the profile says.
    """
    dataset, first = dataset_of(profile), os.environ.get("RANK", "0") == "0"
    training, parent = training_of(profile, name, dataset), parent_of(profile, name)
    if parent and _called(profile.checkpoints(parent)) != experiment(profile, parent, dataset):
        raise FdmError(
            f"{name} starts from {parent}, which is not trained as {profile.params_file} says; train it first."
        )
    return loop.train_launched(training, dataset, root() / "work", processes.device(), first)


def _called(folder: Path) -> str | None:
    """What the training behind a folder of checkpoints is called, or None where nothing tells."""
    try:
        return networks.trained_as(folder)
    except FdmError:
        return None


def fetch(profile: Profile) -> None:
    """Fetch the published networks of a profile into downloads/ and import each as a run's last checkpoint.

    Raises FdmError when one cannot be had or is refused. Whether it is of the run's model is checked when it is scored.
    """
    _remove_others(profile.build / "checkpoints", profile.runs)
    for name, run in profile.runs.items():
        if run.checkpoint is None:
            continue
        path, folder = downloads.fetch(run.checkpoint.url, run.checkpoint.sha256), profile.checkpoints(name)
        target = folder / snapshot_name(SNAPSHOTS[-1])
        released.import_checkpoint(path, target, {"run": name, "images": round(run.checkpoint.kimg * 1000)})
        about = checkpoints.describe(target)
        called = digest([sha256(path), about["weights"]])
        write_json(folder / checkpoints.EXPERIMENT, {"run": name, "experiment": called})
        print(f"{target}: {about['published']}, sha256 {about['sha256']}, {about['denoiser']}, {about['network']}")


# ------------------------------------------------------------------------------------------------------- scoring


def reference(profile: Profile) -> pd.DataFrame:
    """Compute the features of the real images, and the floor of each metric; returns the floor as it is on record."""
    torch.set_num_threads(profile.threads)
    path, dataset = profile.reference_file, dataset_of(profile)
    measure.make_reference(profile, dataset, path, processes.device())
    _, everything, made_by = measure.load_reference(profile, path)
    about = {"shape": [*dataset.shape], "classes": dataset.classes}
    write_json(path.with_name("reference.json"), made_by | about)
    measured = measure.calibrate(profile, everything, made_by)
    real = measure.real_accuracy(dataset, measured["experiment"][0]) if profile.dataset.conditional else pd.DataFrame()
    floor = agreement.read_back(pd.concat([measured, real], ignore_index=True)[measured.columns])
    record = profile.results / "calibration.csv"
    write_text(profile.here / "calibration.csv", floor.to_csv(index=False))
    if not agreement.floor(record, floor):
        write_text(record, floor.to_csv(index=False))
    return measurements.read(record)


class Measured(NamedTuple):
    """What was measured of a run."""

    scores: pd.DataFrame  # as `measure.evaluate` returns them
    errors: pd.DataFrame  # as `errors.measure` does


def _score(profile: Profile, run: str, advance: Advance) -> Measured:
    dataset, device = dataset_of(profile), processes.device()
    wanted = expected(profile, run, dataset)
    with _as_imported(profile.scores(run), profile.errors(run)):
        measured = Measured(
            measure.evaluate(profile, run, dataset, wanted, device, advance),
            errors.measure(profile, run, dataset, wanted, device, advance),
        )
    if run in _shown(profile):
        measure.pictures(profile, run, dataset, _pictures_here(profile, run), device)
    return measured


def _shown(profile: Profile) -> list[str]:
    """The runs whose network and samples are on record: the first of each cell, in a profile that keeps them."""
    if not profile.keep_networks:
        return []
    return [profile.runs_of(cell)[0] for cell, about in profile.cells.items() if not (about.given or about.few_steps)]


def _pictures_here(profile: Profile, run: str) -> Path:
    return profile.here / "runs" / profile.run(run).cell / "pictures.safetensors"


def evaluate(profile: Profile) -> pd.DataFrame:
    """Score every run; returns the measurements of all, as they are on record.

    What was measured here goes to build/<profile>/here/runs/. It also goes on record where the record is of something
    else or does not agree: each cell as soon as its runs are scored. Raises FdmError as `measure.evaluate` does.
    """
    found: dict[str, Measured] = {}
    kept: list[str] = []
    started = time.time()

    def done(run: str, measured: Measured) -> None:
        found[run] = measured
        cell = profile.run(run).cell
        if set(profile.runs_of(cell)) <= found.keys() and _settle(profile, cell, found, started):
            kept.append(cell)

    total = sum(evaluations(profile, run) for run in profile.runs)
    each(profile, profile.runs, _score, done, profile.evaluation.processes, total, "eval")
    _say(profile, "measurements", "runs", profile.cells, kept)
    for folder in (profile.results, profile.here):
        _remove_others(folder / "runs", profile.cells)
    if profile.keep_networks:
        (profile.results / "networks").mkdir(parents=True, exist_ok=True)  # which stays empty for large networks
        names = [f"{run}.{end}" for run in _shown(profile) for end in cards.ENDS]
        _remove_others(profile.results / "networks", names)
    return measurements.table(profile)


def evaluations(profile: Profile, run: str) -> int:
    """Network evaluations that measuring a run takes, about."""
    sampled = profile.evaluation.samples * sum(setting.nfe for setting in measure.settings(profile, run))
    return sampled + errors.evaluations(profile, run)


def compare(profile: Profile) -> pd.DataFrame:
    """Compare the systems of a profile, several cells at once; returns what is on record of all.

    What was measured here goes to build/<profile>/here/systems/, and on record where that is of something else or does
    not agree. Raises FdmError as `systems.compare` does, and for a profile without systems.
    """
    if profile.evaluation.systems is None:
        raise FdmError(f"{profile.params_file} has no evaluation.systems to compare.")
    cells = few_steps.compared(profile)
    total = sum(systems.evaluations(profile, cell) for cell in profile.cells)
    _put_on_record(profile, cells, _compare, total, "eval", "systems", profile.compared, agreement.systems)
    return measurements.systems(profile)


def restore(profile: Profile) -> pd.DataFrame:
    """Compare the restorations of a profile, as `compare` does its systems; returns what is on record of all."""
    restoration.of(profile)  # or there is nothing to compare
    cells = [restoration.ESTIMATE, *profile.cells]
    total = sum(restoration.evaluations(profile, cell) for cell in profile.cells)
    _put_on_record(profile, cells, _restore, total, "eval", "restoration", profile.restored, agreement.restorations)
    return measurements.restorations(profile)


def draw_toys(profile: Profile) -> pd.DataFrame:
    """Train and measure every form of the toy, as `compare` does systems; returns what is on record of all.

    Raises FdmError for a profile without generators, which has no use for it.
    """
    if not profile.generators:
        raise FdmError(f"{profile.params_file} has no cell that is trained to generate, and no toy to draw.")
    total = len(few_steps.TOYS) * len(few_steps.TOY_STEPS) * len(profile.seeds)
    _put_on_record(profile, [*few_steps.TOYS], _draw_toy, total, "training", "toys", profile.toy, agreement.systems)
    return measurements.toys(profile)


def _draw_toy(profile: Profile, toy: str, advance: Advance) -> pd.DataFrame:
    with _as_imported(few_steps.memory(profile, toy)):
        found, points = few_steps.toys(profile, toy, advance)
    replace(profile.here / "toys" / f"{toy}{PICTURES}", functools.partial(save_file, points))
    return found


def _put_on_record(
    profile: Profile, cells: list[str], work: Callable[[Profile, str, Advance], pd.DataFrame], total: int, unit: str,
    what: str, record: Callable[[str], Path], agrees: Callable[[Path, pd.DataFrame], bool],
) -> None:  # fmt: skip
    """Measure cells; a table goes on record where that is of something else or does not agree."""
    kept, started = list[str](), time.time()

    def done(cell: str, found: pd.DataFrame) -> None:
        table, path = agreement.read_back(found), record(cell)
        text, here = table.to_csv(index=False), profile.here / what / path.name
        write_text(here, text)
        if agrees(path, table):
            kept.append(cell)
            return
        write_text(path, text)
        if here.with_suffix(PICTURES).is_file():
            _copy(here.with_suffix(PICTURES), path.with_suffix(PICTURES))
        provenance.record(profile.results / "provenance" / f"{cell}-{what}.json", digest(text), started, cell=cell)

    each(profile, cells, work, done, 1, total, unit)
    _say(profile, what, what, cells, kept)
    for folder in (profile.results, profile.here):
        _remove_others(folder / what, [f"{cell}{end}" for cell in cells for end in (".csv", PICTURES)])


def _restore(profile: Profile, cell: str, advance: Advance) -> pd.DataFrame:
    dataset, device = dataset_of(profile), processes.device()
    if cell == restoration.ESTIMATE:
        with _as_imported():
            return restoration.estimates(profile, dataset, device)
    of = functools.partial(expected, profile, dataset=dataset)
    with _as_imported(*(restoration.memory(profile, run) for run in profile.runs_of(cell))):
        found, images = restoration.compare(profile, cell, dataset, of, device, advance)
    place = profile.here / "restoration" / f"{cell}{PICTURES}"
    replace(place, functools.partial(save_file, images))
    return found


def train_heads(profile: Profile) -> list[str]:
    """Train the heads that `evaluation.systems` samples with; those that are there are kept. Returns the runs."""
    par = profile.evaluation.systems
    wanted = {run: len(heads.targets_of(profile, run)) for run in profile.trained if heads.targets_of(profile, run)}
    if par is None or par.heads is None or not wanted:
        raise FdmError(f"{profile.params_file} has no evaluation.systems that sample with heads.")
    each(
        profile, wanted, _train_heads, lambda run, done: None, 1, sum(wanted.values()) * heads.images(par.heads), "img"
    )
    _remove_others(profile.build / "heads", wanted)
    return [*wanted]


def _train_heads(profile: Profile, run: str, advance: Advance) -> None:
    _unchanged()
    heads.train(profile, run, dataset_of(profile), processes.device(), advance)


def _require_heads(profile: Profile, run: str) -> None:
    """Raise FdmError for heads that the parameters and the source do not name: others would be measured under it."""
    par, folder, targets = profile.evaluation.systems, profile.heads(run), heads.targets_of(profile, run)
    if par is None or par.heads is None or not targets:
        return
    trained = networks.trained_as(profile.checkpoints(run))
    try:
        known = json.loads((folder / checkpoints.EXPERIMENT).read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known != {each: heads.experiment(trained, par.heads, each) for each in targets}:
        raise FdmError(
            f"The heads in {folder} are missing, or of other parameters or source; run python -m fdm heads --params "
            f"{profile.params_file}."
        )


def _compare(profile: Profile, cell: str, advance: Advance) -> pd.DataFrame:
    dataset, device = dataset_of(profile), processes.device()
    if cell == systems.FLOOR:
        with _as_imported():
            return systems.floor(profile, dataset, device)
    place = profile.here / "systems" / f"{cell}{PICTURES}"
    for run in profile.runs_of(cell):
        _require_heads(profile, run)
    with _as_imported(*(systems.memory(profile, run) for run in profile.runs_of(cell))):
        found = systems.compare(profile, cell, dataset, lambda run: expected(profile, run, dataset), device, advance)
    if profile.few_steps:
        images = few_steps.pictures(profile, cell, dataset, device)
        replace(place, functools.partial(save_file, images))
    return found


def _complete(profile: Profile, run: str, advance: Advance) -> tuple[dict[str, Any] | None, Measured]:
    """Train a run, where it is trained here, and measure it."""
    one = loop.evaluations(profile.run(run))
    told = (lambda n: advance(one * n)) if advance else None
    trained = _train(profile, run, told) if run in profile.trained else None
    return trained, _score(profile, run, advance)


def complete(profile: Profile, scheduler: str | None = None) -> None:
    """Train and measure the runs of a profile, cell by cell in their order, each put on record whole as it ends.

    What is there is kept, so that it can be stopped at any time; dvc repro takes what it leaves. `scheduler` is the
    address of a Dask cluster, see `each`. Raises FdmError as `train` and `evaluate` do.
    """
    if not profile.dataset_file.exists():
        sources.prepare(profile.dataset, profile.dataset_file)
    if not profile.reference_file.exists():
        reference(profile)
    dataset, started = dataset_of(profile), time.time()
    losses: dict[str, dict[str, Any]] = {}
    found: dict[str, Measured] = {}

    def done(run: str, value: tuple[dict[str, Any] | None, Measured]) -> None:
        trained, found[run] = value
        if trained:
            losses[run] = trained
        cell = profile.run(run).cell
        if set(profile.runs_of(cell)) <= found.keys():
            if trained:
                _settle_losses(profile, cell, losses, dataset)
            kept = _settle(profile, cell, found, started)
            print(f"{cell}: {'agrees with the record' if kept else 'put on record'}", file=sys.stderr)

    for tuned in (False, True):  # which start from what the others have left
        names = [name for name, run in profile.runs.items() if (run.source == "finetune") == tuned]
        trained = [name for name in names if name in profile.trained]
        total = sum(evaluations(profile, name) for name in names)
        total += sum(images(profile, name) * loop.evaluations(profile.run(name)) for name in trained)
        each(profile, names, _complete, done, profile.evaluation.processes, total, "eval", scheduler)


def _settle(profile: Profile, cell: str, found: dict[str, Measured], started: float) -> bool:
    """Put a cell's measurements, pictures and network on record, unless the record agrees; returns whether it does."""
    names, source, record = profile.runs_of(cell), profile.here / "runs" / cell, profile.recorded(cell)
    measured, wrong = (
        agreement.read_back(pd.concat([getattr(found[run], kind) for run in names], ignore_index=True))
        for kind in Measured._fields
    )
    text = measured.to_csv(index=False)
    tables = {"measurements.csv": text} | ({"errors.csv": wrong.to_csv(index=False)} if len(wrong) else {})
    for name, content in tables.items():
        write_text(source / name, content)
    path = record / "measurements.csv"
    if (
        agreement.measurements(profile, path, measured)
        and (wrong.empty or agreement.errors(record / "errors.csv", wrong))
        and _whole(profile, cell)
    ):
        return True
    for name, content in tables.items():
        write_text(record / name, content)
    first = profile.runs_of(cell)[0]
    if first in _shown(profile):
        _copy(_pictures_here(profile, first), path.with_name("pictures.safetensors"))
        if _in_git(profile, first):
            network = profile.checkpoints(first) / snapshot_name(SNAPSHOTS[-1])
            _copy(network, profile.results / "networks" / f"{first}.safetensors")
            write_text(profile.results / "networks" / f"{first}.md", cards.card(profile, first, measured))
    seconds = sum(_seconds(profile, run) for run in profile.runs_of(cell))
    provenance.record(
        profile.results / "provenance" / f"{cell}.json", digest(text), started, cell=cell, training_seconds=seconds
    )
    return False


def _in_git(profile: Profile, run: str) -> bool:
    """Whether the last network of a run is kept in git: one that was trained here, and is small."""
    network = profile.checkpoints(run) / snapshot_name(SNAPSHOTS[-1])
    return run in profile.trained and network.stat().st_size <= KEPT


def _whole(profile: Profile, cell: str) -> bool:
    """Whether the record of a cell has all its files, and its network is the one that was scored."""
    first = profile.runs_of(cell)[0]
    if first not in _shown(profile):
        return True
    folder, small = profile.recorded(cell), _in_git(profile, first)
    try:
        network = profile.results / "networks" / f"{first}.safetensors"
        weights = checkpoints.load(network)[1]["weights"] if small else None
        rows = measurements.read(folder / "measurements.csv")
    except (FdmError, OSError, KeyError):
        return False
    scored = set(rows[(rows["duration"] == 1) & (rows["run"] == first)]["checkpoint"].astype(str))
    return (folder / "pictures.safetensors").is_file() and (not small or scored == {str(weights)[:12]})


def _seconds(profile: Profile, run: str) -> float:
    try:
        return round(json.loads((profile.logs(run) / "finished.json").read_text())["seconds"], 1)
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one, and the measurements are as good
        return 0.0


def _copy(source: Path, target: Path) -> None:
    replace(target, functools.partial(shutil.copyfile, source))
