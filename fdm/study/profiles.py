"""A profile: the validated parameters of one scale of the study, read from its params.yaml."""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fdm.files import FdmError, root
from fdm.params import (
    SNAPSHOTS,
    CellParams,
    Count,
    DatasetParams,
    HeadParams,
    NetworkParams,
    Positive,
    Precision,
    RunName,
    RunParams,
    Seed,
    Share,
    Strict,
    TrainingParams,
)

OWN = ("lr", "budget_kimg", "batch", "ema_halflife_kimg", "ema_ramp")  # of a training, that a cell may have
USUAL_TOP = 80.0  # the highest noise level of the published sampling
USUAL = "usual"  # what a table has as options of a sampler on its usual grid

# Limits of a file of parameters and of what follows from it; the longest that the study has is of 7 KB.
MOST_BYTES, MOST_VALUES, DEEPEST, LONGEST = 1_000_000, 100_000, 20, 1000  # LONGEST: characters of a value
MOST_RUNS, MOST_COMBINATIONS = 20_000, 10_000
SLOWEST = 100  # a ramp of the learning rate, in budgets of a training
QUOTED = 80  # characters of a value that a message quotes


def quoted(value: Any) -> str:
    """A value as Python writes it, cut where that is long."""
    text = repr(value)
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 3]}..."


Option = Annotated[float, Field(allow_inf_nan=False)] | int | Annotated[str, Field(max_length=QUOTED)]


class SettingParams(BaseModel):
    """Sets of samples that are scored: every NFE x duration x highest noise level of one sampler.

    What the sampler has as options, such as `eta` of ddim, stands beside these keys.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Option]

    sampler: str
    nfe: Annotated[list[Count], Field(min_length=1)]
    duration: Annotated[list[Share], Field(min_length=1)] = [1.0]  # shares of the training budget
    sigma_max: Annotated[list[Positive], Field(min_length=1)] = [USUAL_TOP]  # where the sampler starts
    cells: list[str] | None = None  # which are measured; all, where it is not given
    grid: str | None = None  # another grid of noise levels than the sampler's usual one
    to_zero: bool | None = None  # whether it ends at zero noise, where that is not the sampler's usual

    @property
    def options(self) -> dict[str, float | str]:
        """The sampler's own options."""
        given = self.model_extra or {}
        return {key: value if isinstance(value, str) else float(value) for key, value in given.items()}

    @model_validator(mode="after")
    def _possible(self) -> "SettingParams":
        from fdm.samplers import GRIDS, SAMPLERS  # which imports torch

        for key, value, known in (("sampler", self.sampler, SAMPLERS), ("grid", self.grid, GRIDS)):
            if value is not None and value not in known:
                raise ValueError(
                    f"evaluation.settings: {key} {quoted(value)} is not known; there are {', '.join(map(str, known))}"
                )
        entry = SAMPLERS[self.sampler]
        where = f"evaluation.settings, {self.sampler}"
        for field in ("nfe", "duration", "sigma_max"):
            if len(set(map(str, getattr(self, field)))) < len(getattr(self, field)):
                raise ValueError(
                    f"{where}: {field} {quoted(getattr(self, field))} is not allowed; an entry is there twice"
                )
        for share in self.duration:
            if share not in SNAPSHOTS:
                raise ValueError(f"{where}: duration {share} is not allowed; networks are kept at {SNAPSHOTS}")
        try:
            entry.check(self.model_extra or {})
            end = entry.to_zero if self.to_zero is None else self.to_zero
            if not entry.flows and self.sigma_max != [USUAL_TOP]:
                raise ValueError("sigma_max is not allowed; a generator draws from the level that it was trained for")
            GRIDS[self.grid or entry.grid](1.0, 2.0, end)
            for nfe in self.nfe:
                entry.steps(nfe, end)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return self


class ErrorParams(Strict):
    """What is measured of D itself: its error by noise level at every snapshot, and what a solver adds at the end."""

    images: Count  # of each set, held out and training
    latents: Annotated[int, Field(ge=0)] = 0  # behind a solver's error; 0 measures none
    solvers: dict[str, list[Count]] = Field(default_factory=dict)  # samplers, and their numbers of evaluations
    cells: list[str] | None = None  # whose solvers' errors are measured; all, where it is not given
    gradients: list[str] = Field(default_factory=list)  # cells whose gradients are measured, early in the training

    @model_validator(mode="after")
    def _possible(self) -> "ErrorParams":
        from fdm.samplers import SAMPLERS  # which imports torch

        if bool(self.latents) != bool(self.solvers):
            raise ValueError("evaluation.errors: latents and solvers belong together")
        for sampler, numbers in self.solvers.items():
            if sampler not in SAMPLERS:
                known = ", ".join(SAMPLERS)
                raise ValueError(f"evaluation.errors.solvers: {quoted(sampler)} is not known; there are {known}")
            try:
                for nfe in numbers:
                    SAMPLERS[sampler].steps(nfe, SAMPLERS[sampler].to_zero)
            except ValueError as error:
                raise ValueError(f"evaluation.errors.solvers, {sampler}: {error}") from error
        return self


def combinations(fixed: dict[str, Any], tune: Mapping[str, list[float | int | str]]) -> list[dict[str, float | str]]:
    """Options with every combination of the values that are tried; the fixed ones alone, where nothing is.

    Raises ValueError where these are more than MOST_COMBINATIONS.
    """
    if math.prod(map(len, tune.values())) > MOST_COMBINATIONS:
        raise ValueError(f"tune has more than {MOST_COMBINATIONS:,} combinations of values")
    every = itertools.product(*([(name, value) for value in values] for name, values in tune.items()))
    return [{k: v if isinstance(v, str) else float(v) for k, v in (fixed | dict(each)).items()} for each in every]


class SystemParams(BaseModel):
    """A way to sample that is compared with others. Its sampler's options stand beside these keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Option]

    name: Annotated[str, Field(min_length=1)]  # as tables and figures have it
    sampler: str
    grid: str | None = None  # another grid of noise levels than the sampler's usual one
    to_zero: bool = False  # all others end at the lowest level
    # Options of which the best of all combinations is found, by name: every value that is tried.
    tune: dict[str, Annotated[list[Option], Field(min_length=2)]] = Field(default_factory=dict)
    together: bool = False  # whether one combination is found for all numbers of evaluations
    like: str | None = None  # another system, whose combination it takes
    against: list[str] = Field(default_factory=list)  # others, besides the first, that it is compared with
    other_latents: bool = False  # from latents of its own, which no system is: what chance does
    nfe: Annotated[list[Count], Field(min_length=1)] | None = None  # where they are others than the comparison's
    heads: Literal["raw", "centred"] | None = None  # that say a trained network's moments; an exact one knows its own

    @property
    def candidates(self) -> list[dict[str, float | str]]:
        """The options of each combination that is tried; of a system of which nothing is tuned, its own."""
        return combinations(self.model_extra or {}, self.tune)


class CrossedParams(Strict):
    """Samplers and grids of which every pair is compared."""

    samplers: Annotated[list[str], Field(min_length=1)]
    grids: Annotated[list[str], Field(min_length=1)]
    nfe: Annotated[list[Count], Field(min_length=1)]


class SystemsParams(Strict):
    """The comparison of systems: what else makes sampling fast, on the networks of the profile."""

    samples: Annotated[int, Field(ge=16)]  # of each training and block of latents; those for tuning are a block apart
    nfe: Annotated[list[Count], Field(min_length=1)]
    # The first is the one that the others are compared with.
    systems: Annotated[list[SystemParams], Field(min_length=2)]
    crossed: CrossedParams | None = None
    distances: bool = True  # whether samples' distances to converged ones are measured, which take most evaluations
    heads: HeadParams | None = None  # how they are trained, on every network that samples with them
    only: dict[str, list[str]] = Field(default_factory=dict)  # cells with some of the systems alone, and none crossed

    def of(self, cell: str) -> list[SystemParams]:
        """The systems that are compared on a cell."""
        return [each for each in self.systems if each.name in self.only.get(cell, [each.name])]

    @model_validator(mode="after")
    def _possible(self) -> "SystemsParams":
        from fdm.samplers import GRIDS, SAMPLERS  # which imports torch

        crossed = self.crossed
        if crossed and not self.distances:
            raise ValueError("evaluation.systems: what is crossed is measured by its distances, and they are left out")
        samplers = [*(each.sampler for each in self.systems), *(crossed.samplers if crossed else [])]
        grids = [*(each.grid for each in self.systems if each.grid), *(crossed.grids if crossed else [])]
        for wanted, known in [*((name, [*SAMPLERS]) for name in samplers), *((name, [*GRIDS]) for name in grids)]:
            if wanted not in known:
                raise ValueError(f"evaluation.systems: {quoted(wanted)} is not known; there are {', '.join(known)}")
        names = [each.name for each in self.systems]
        if len(set(names)) < len(names):
            raise ValueError("evaluation.systems: two systems have the same name")
        tuned = [each.name for each in self.systems if each.tune]
        for cell, chosen in self.only.items():
            if unknown := [name for name in chosen if name not in names]:
                raise ValueError(f"evaluation.systems.only, {cell}: there is no such system as {quoted(unknown[0])}")
        for each in self.systems:
            if (each.sampler == "gms") != (each.heads is not None) or (each.heads and not self.heads):
                raise ValueError(f"evaluation.systems, {each.name}: heads belong to gms, and to evaluation.systems")
            needed = [*([(each.like, tuned)] if each.like else []), *((name, names) for name in each.against)]
            for other, among in needed:
                if other not in among:
                    raise ValueError(f"evaluation.systems, {each.name}: there is no such system as {quoted(other)}")
        for each in self.systems:
            try:
                GRIDS[each.grid or SAMPLERS[each.sampler].grid](1.0, 2.0, each.to_zero)
                for options in each.candidates:
                    SAMPLERS[each.sampler].check(options)
            except ValueError as error:
                raise ValueError(f"evaluation.systems, {each.name}: {error}") from error
        return self


Kind = Literal["nothing", "estimate", "shift"]


def given(cell: CellParams) -> Kind:
    """What a cell's networks are given beside x, and whether the clean image in x moves to it."""
    return "nothing" if cell.given is None else "shift" if cell.given.shift else "estimate"


class RestorerParams(BaseModel):
    """A way to restore images that is compared with others. Its method's options stand beside these keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Option]

    name: Annotated[str, Field(min_length=1)]  # as tables and figures have it
    method: str  # in fdm.tasks.restoration.methods.RESTORERS
    given: Kind = "nothing"  # the networks that it is for
    # Options of which the best of all combinations is found, by name: every value that is tried.
    tune: dict[str, Annotated[list[Option], Field(min_length=2)]] = Field(default_factory=dict)
    against: list[str] = Field(default_factory=list)  # others that it is compared with, on networks of the same kernel

    @property
    def candidates(self) -> list[dict[str, float | str]]:
        """The options of each combination that is tried; of one of which nothing is tuned, its own."""
        return combinations(self.model_extra or {}, self.tune)


class RestorationParams(Strict):
    """The comparison of restorations: held-out images from measurements of them, on the networks of the profile."""

    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # standard deviation of the measurements'
    tasks: Annotated[list[str], Field(min_length=1)]  # in fdm.tasks.physics.TASKS
    images: Annotated[int, Field(ge=16)]  # of each training, its own
    tuning: Count  # images apart, on which options are chosen, with the first seed of a cell
    nfe: Annotated[list[Count], Field(min_length=1)]
    # The first for each kind of network is the one that the others of this kind are compared with.
    systems: Annotated[list[RestorerParams], Field(min_length=1)]

    def of(self, cell: CellParams) -> list[RestorerParams]:
        """The systems that are compared on a cell."""
        return [each for each in self.systems if each.given == given(cell)]

    def tasks_of(self, cell: CellParams) -> list[str]:
        """The tasks that a cell's networks can be asked: all, or the one that they were trained for."""
        return self.tasks if cell.given is None else [task for task in self.tasks if task == cell.given.task]

    @model_validator(mode="after")
    def _possible(self) -> "RestorationParams":
        from fdm.tasks.physics import TASKS  # which imports torch
        from fdm.tasks.restoration.methods import RESTORERS, possible

        methods = [each.method for each in self.systems]
        for wanted, known in [*((name, [*TASKS]) for name in self.tasks), *((name, [*RESTORERS]) for name in methods)]:
            if wanted not in known:
                raise ValueError(f"evaluation.restoration: {quoted(wanted)} is not known; there are {', '.join(known)}")
        names = [each.name for each in self.systems]
        if len(set(names)) < len(names):
            raise ValueError("evaluation.restoration: two systems have the same name")
        for each in self.systems:
            if unknown := [name for name in each.against if name not in names]:
                raise ValueError(
                    f"evaluation.restoration, {each.name}: there is no such system as {quoted(unknown[0])}"
                )
            entry = RESTORERS[each.method]
            if entry.conditional not in (None, each.given != "nothing") or entry.shifted != (each.given == "shift"):
                told = f"{each.method} is not for networks that are given {each.given}"
                raise ValueError(f"evaluation.restoration, {each.name}: {told}")
            try:
                for options in each.candidates:
                    entry.check(options)
                    if not any(possible(each.method, nfe, options) for nfe in self.nfe):
                        raise ValueError("it cannot end without noise in any of these numbers of evaluations")
            except ValueError as error:
                raise ValueError(f"evaluation.restoration, {each.name}: {error}") from error
        return self


class EvaluationParams(Strict):
    """What is sampled and how it is scored."""

    extractor: Literal["efficientnet-lite0", "inception-v3-compat"]
    reference: Literal["half", "all"]  # the real images to compare with; `half` leaves as many for calibration
    samples: Annotated[int, Field(ge=16)]
    batch: Count
    # The first is the one of Table 1, learning curves and pictures.
    settings: Annotated[list[SettingParams], Field(min_length=1)]
    errors: ErrorParams | None = None
    systems: SystemsParams | None = None
    restoration: RestorationParams | None = None
    processes: Count = 1  # batches are shared out to them (one a GPU); the samples do not depend on it
    precision: Precision = "fp32"  # of the sampled networks; features are always float32

    @property
    def primary(self) -> tuple[str, int]:
        """Sampler and number of evaluations of Table 1, learning curves and pictures."""
        return self.settings[0].sampler, self.settings[0].nfe[0]


class Profile(Strict):
    """All parameters of a profile. One whose networks are published ones has no `network` and no `training`."""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    root: Literal[".", "../.."]
    params_file: str
    threads: Count
    conclusions: Literal["04_tables", "05_evidence"] | None = None  # the notebook that draws them
    beside: list[str] = Field(default_factory=list)  # other profiles whose records that notebook shows as well
    keep_networks: bool = False  # whether the last networks are kept in git, where they are small, with some samples
    dataset: DatasetParams
    network: NetworkParams | None = None
    training: TrainingParams | None = None
    evaluation: EvaluationParams
    seeds: Annotated[list[Seed], Field(min_length=1)]  # every cell is trained with each of them
    cells: Annotated[dict[RunName, CellParams], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        from fdm.data.sources import SOURCES  # which, as the frameworks, imports torch
        from fdm.samplers import SAMPLERS

        if self.dataset.name not in SOURCES:
            raise ValueError(
                f"dataset.name: {quoted(self.dataset.name)} is not allowed; it must be one of {', '.join(SOURCES)}"
            )
        for where, seeds in [
            ("seeds", self.seeds),
            *((f"cells.{n}.seeds", c.seeds or []) for n, c in self.cells.items()),
        ]:
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{where}: {quoted(seeds)} is not allowed; a seed is there twice")
        if (count := sum(len(self.seeds_of(name)) for name in self.cells)) > MOST_RUNS:
            raise ValueError(f"cells: they have {count:,} runs with their seeds, and {MOST_RUNS:,} are allowed")
        errors = self.evaluation.errors
        for each in self.evaluation.settings:
            for wanted in each.cells or []:
                if wanted in self.cells and SAMPLERS[each.sampler].flows == self.cells[wanted].generates:
                    why = "a generator, sampled by siddm alone" if self.cells[wanted].generates else "no generator"
                    raise ValueError(f"evaluation.settings, {each.sampler}: {wanted} is {why}")
        for where, cells in [
            *(("settings", each.cells) for each in self.evaluation.settings), ("errors", errors and errors.cells),
            ("errors", errors and errors.gradients),
        ]:  # fmt: skip
            for wanted in cells or []:
                if wanted not in self.cells:
                    raise ValueError(f"evaluation.{where}: there is no cell named {wanted}")
        if self.evaluation.restoration and len(self.trained) < len(self.runs):
            raise ValueError("evaluation.restoration: it compares networks that are trained here, and no other cells")
        par, own = self.training, {f"cells.{key}": each.batch for key, each in self.cells.items()}
        budgets = [each.budget_kimg for each in self.cells.values() if each.budget_kimg]
        if par and par.lr_ramp_kimg > SLOWEST * min([par.budget_kimg, *budgets]):
            raise ValueError(
                f"training.lr_ramp_kimg: {par.lr_ramp_kimg} is not allowed; within its budget the rate would "
                f"not reach a part in {SLOWEST} of lr, and nothing be trained"
            )
        batches = [("training", par and par.batch), *own.items()]
        for where, batch in batches:
            if par and batch and batch % (par.processes * par.accumulation):
                raise ValueError(
                    f"{where}.batch: {batch} is not allowed; it must be a multiple of processes x accumulation, "
                    f"{par.processes} x {par.accumulation}"
                )
        compared = self.evaluation.systems
        for key, cell in self.cells.items():
            if compared and compared.systems[0] not in compared.of(key) and not cell.generates:
                raise ValueError(
                    f"evaluation.systems.only, {key}: {compared.systems[0].name} is missing, the first of all"
                )
        if self.trained and any(cell.source == "fetch" for cell in self.cells.values()):
            raise ValueError("cells: some are fetched and some trained; a profile does one of the two")
        for section in ("network", "training"):
            if self.trained and getattr(self, section) is None:
                raise ValueError(f"{section} is missing")
            if not self.trained and getattr(self, section) is not None:
                raise ValueError(f"{section} must be absent where no network is trained")
        for name, cell in self.cells.items():
            self._check_cell(name, cell)
        return self

    def _check_cell(self, name: str, cell: CellParams) -> None:
        from fdm.process.frameworks import FRAMEWORKS
        from fdm.process.joint import JOINT

        known = FRAMEWORKS | JOINT
        if cell.framework not in known:
            told = ", ".join(known)
            raise ValueError(
                f"cells.{name}.framework: {quoted(cell.framework)} is not allowed; it must be one of {told}"
            )
        if cell.framework in JOINT and (cell.kernel != "baseline" or cell.source != "train" or cell.variant):
            raise ValueError(f"cells.{name}: a network of {cell.framework} is a baseline that is trained here")
        self._check_given(name, cell)
        self._check_few_steps(name, cell)
        if cell.variant == "radius embedded" and self.training and self.training.augment > 0:
            raise ValueError(f"cells.{name}.variant: the network is told of augmentations instead; set augment to 0")
        if "." in name:
            raise ValueError(f"cells.{name}: a name has no dot, which DVC reads as a path")
        if not f"{name}-".startswith(f"{cell.framework}-{cell.kernel}-"):
            raise ValueError(f"cells.{name}: the name of a cell begins with {cell.framework}-{cell.kernel}")
        if cell.start is not None and (
            cell.start not in self.cells or cell.start == name or self.cells[cell.start].source != "train"
        ):
            raise ValueError(
                f"cells.{name}.start: {quoted(cell.start)} is not allowed; it must be a cell that is trained"
            )
        if cell.start is not None:
            parent, where = self.cells[cell.start], f"cells.{name}.start: {quoted(cell.start)} is not allowed"
            if missing := [seed for seed in self.seeds_of(name) if seed not in self.seeds_of(cell.start)]:
                raise ValueError(f"{where}; it is not trained with the seed {missing[0]}")
            kinds = [
                (each.framework in JOINT, known[each.framework].architecture, each.channel_mult, each.model_channels,
                 each.variant)
                for each in (cell, parent)
            ]  # fmt: skip
            if kinds[0] != kinds[1]:
                raise ValueError(f"{where}; its network is another")
        if self.network is not None:
            depth = len(cell.channel_mult or self.network.channel_mult) - 1
            if self.dataset.resolution % 2**depth:
                raise ValueError(
                    f"cells.{name}: {depth} halvings do not divide a resolution of {self.dataset.resolution}"
                )

    def _check_given(self, name: str, cell: CellParams) -> None:
        from fdm.process.frameworks import FRAMEWORKS
        from fdm.tasks.physics import TASKS

        if cell.given is None:
            return
        if cell.framework not in FRAMEWORKS or cell.source != "train" or cell.variant:
            raise ValueError(
                f"cells.{name}.given: a network that is given an estimate is trained here, without variant"
            )
        if self.training and self.training.augment > 0:
            raise ValueError(f"cells.{name}.given: its estimate is not augmented; set augment to 0")
        if self.dataset.resolution % TASKS[cell.given.task].divides:
            raise ValueError(f"cells.{name}.given: {cell.given.task} needs a resolution that its blocks divide")

    def _check_few_steps(self, name: str, cell: CellParams) -> None:
        from fdm.process.frameworks import FRAMEWORKS

        few, where = cell.few_steps, f"cells.{name}.few_steps"
        if few is None or self.training is None:
            return
        if cell.framework not in FRAMEWORKS or cell.variant or self.training.augment > 0:
            raise ValueError(f"{where}: it is for the networks of a framework, without variant, and augment: 0")
        if cell.warmup_steps or (few.adversarial and few.steps < 2):
            why = "has no loss weight to warm up" if cell.warmup_steps else "takes at least 2 steps"
            raise ValueError(f"{where}: {few.objective} {why}")
        if self.training.accumulation > 1:
            why = "critic and generator learn in turn" if few.adversarial else "its loss is one of the whole batch"
            raise ValueError(f"{where}: {why}; set training.accumulation to 1")
        if few.features == self.evaluation.extractor:
            raise ValueError(f"{where}.features: {few.features} scores the samples, and must not train the network")

    def seeds_of(self, cell: str) -> list[int]:
        """The seeds of a cell; raises FdmError for a cell that the profile does not have."""
        if cell not in self.cells:
            raise FdmError(f"{self.params_file} has no cell named {cell}; it has {', '.join(self.cells)}.")
        return self.cells[cell].seeds or self.seeds

    def runs_of(self, cell: str) -> list[str]:
        """Names of the runs of a cell, <cell>-<seed>."""
        return [f"{cell}-{seed}" for seed in self.seeds_of(cell)]

    @functools.cached_property
    def runs(self) -> Mapping[str, RunParams]:
        """All runs by name, in an order in which each comes after the one that it starts from."""
        return dict(self._runs())

    def _runs(self) -> Iterator[tuple[str, RunParams]]:
        for name, cell in sorted(self.cells.items(), key=lambda each: each[1].source == "finetune"):
            for seed in self.seeds_of(name):
                values = cell.model_dump(exclude={"seeds"}) | {"cell": name, "seed": seed}
                yield f"{name}-{seed}", RunParams.model_validate(values)

    @property
    def few_steps(self) -> list[str]:
        """The cells that are trained for few steps."""
        return [name for name, cell in self.cells.items() if cell.few_steps]

    @property
    def generators(self) -> list[str]:
        """Those of them whose networks draw."""
        return [name for name in self.few_steps if self.cells[name].generates]

    @property
    def trained(self) -> dict[str, RunParams]:
        """The runs that are trained here."""
        return {name: run for name, run in self.runs.items() if run.source in ("train", "finetune")}

    def parameters(self, name: str) -> TrainingParams:
        """How a run is trained: as the profile says, but for what the run has of its own."""
        run = self.run(name)
        assert self.training is not None  # or there would be no run to train
        own = {key: getattr(run, key) for key in OWN if getattr(run, key) is not None}
        return self.training.model_copy(update=own)

    @property
    def build(self) -> Path:
        """Folder of what is made on this machine: data, features, checkpoints, scores."""
        return root() / "build" / self.profile

    @property
    def results(self) -> Path:
        """Folder of what is committed: tables, figures, measurements, executed notebooks."""
        return root() / "results" / self.profile

    @property
    def dataset_file(self) -> Path:
        """The prepared data set."""
        return self.build / "dataset.safetensors"

    @property
    def reference_file(self) -> Path:
        """Features of the real images."""
        return self.build / "reference" / "features.safetensors"

    @property
    def here(self) -> Path:
        """What was measured on this machine: calibration.csv, runs/<cell>/, notebooks/."""
        return self.build / "here"

    def checkpoints(self, run: str) -> Path:
        """Folder of a run's checkpoints, as they were trained here or fetched."""
        return self.build / "checkpoints" / run

    def heads(self, run: str) -> Path:
        """Folder of the heads that were trained on a run's network."""
        return self.build / "heads" / run

    def logs(self, run: str) -> Path:
        """Folder of a run's log of training."""
        return self.build / "logs" / run

    def scores(self, run: str) -> Path:
        """What was measured of a run, by all that shapes it."""
        return self.build / "scores" / f"{run}.json"

    def errors(self, run: str) -> Path:
        """What was measured of a run's errors, by all that shapes it."""
        return self.build / "errors" / f"{run}.json"

    def compared(self, cell: str) -> Path:
        """The comparison of systems on a cell, on record."""
        return self.results / "systems" / f"{cell}.csv"

    def restored(self, cell: str) -> Path:
        """The comparison of restorations on a cell, on record."""
        return self.results / "restoration" / f"{cell}.csv"

    def toy(self, name: str) -> Path:
        """What was measured of a form of the toy, on record."""
        return self.results / "toys" / f"{name}.csv"

    def recorded(self, cell: str) -> Path:
        """Folder of a cell's measurements and pictures on record."""
        return self.results / "runs" / cell

    def run(self, name: str) -> RunParams:
        """Parameters of one run; raises FdmError for a name that the profile does not have."""
        if name not in self.runs:
            raise FdmError(f"{self.params_file} has no run named {name}; it has {', '.join(self.runs)}.")
        return self.runs[name]


# Plain text that YAML 1.1, which reads it here, and YAML 1.2, which DVC compares it by, take for the same value.
SAME = {
    "int": re.compile(r"[-+]?(0|[1-9]\d*)"),
    "float": re.compile(r"[-+]?(\.\d+|\d+\.\d*)([eE][-+]\d+)?"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "null": re.compile(r"~|null|Null|NULL|"),
    "str": re.compile(r".*"),
    "seq": None, "map": None,
}  # fmt: skip
DIGITS = 40  # of a number
# A number to people and not to YAML, which wants a point, and a sign behind the e.
POWER = re.compile(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)")


class _Loader(yaml.SafeLoader):
    """YAML within limits: no key twice, and nothing that YAML 1.1 and 1.2 read in two ways; FdmError for all else."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth, self.values, self.sizes = 0, 0, dict[int, int]()  # sizes: values in each node, aliases followed

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before = self.peek_event(), self.values
        line = f"line {event.start_mark.line + 1}"
        self.depth, self.values = self.depth + 1, self.values + 1
        if self.depth > DEEPEST:
            raise FdmError(f"{line}: it is deeper than {DEEPEST} levels.")
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self.values += self.sizes.get(id(node), MOST_VALUES)  # one within itself has no end
        else:
            self._check(node, line)
        if self.values > MOST_VALUES:
            raise FdmError(f"{line}: there are more than {MOST_VALUES:,} values up to here, which are allowed.")
        self.depth, self.sizes[id(node)] = self.depth - 1, self.values - before
        return node

    def _check(self, node: Any, line: str) -> None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in SAME:
            raise FdmError(f"{line}: {quoted(kind)} is no kind of value that parameters have; put a word into quotes.")
        if not (pattern := SAME[kind]):
            return
        if len(node.value) > LONGEST or not node.value.isprintable():
            raise FdmError(f"{line}: {quoted(node.value)} is longer than {LONGEST:,} characters, or cannot be printed.")
        if not pattern.fullmatch(node.value) or (kind in ("int", "float") and len(node.value) > DIGITS):
            raise FdmError(
                f"{line}: {quoted(node.value)} is read in two ways, or in none; write a finite number in decimal "
                "digits without a leading 0, true or false, or put a word into quotes."
            )

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set[str]()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise FdmError(f"{line}: a key is a word, and no list or table.")
            if key.value in seen:
                raise FdmError(f"{line}: the key {quoted(key.value)[1:-1]} is given twice.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)


def _table(keys: tuple[int | str, ...]) -> type[BaseModel]:
    """The table of parameters at that place in a profile."""
    table: type[BaseModel] = Profile
    for key in keys:
        if field := table.model_fields.get(str(key)):
            table = next(_tables(field.annotation), table)
    return table


KINDS = ("[key]", "float", "constrained-str")  # what stands in a place beside keys


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part)[:QUOTED] for part in first["loc"] if part not in KINDS) or "its content"
    if first["type"] == "value_error":
        return f"{key}: " * (first["loc"][:1] == ("cells",)) + str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        return f"{key} is not a known key; allowed here are {', '.join(_table(first['loc'][:-1]).model_fields)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    told = f"{key}: {quoted(first['input'])} is not allowed; {first['msg'][0].lower()}{first['msg'][1:]}"
    if isinstance(first["input"], str) and (number := POWER.fullmatch(first["input"])):
        digits, fraction, sign, power = number.groups()
        told += f"; YAML takes it for a word: write {digits}{fraction or '.0'}e{sign or '+'}{power}"
    return told


def _values(path: Path) -> Any:
    """What a file of parameters says; raises FdmError, without the file's name, for one that is not within limits."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise FdmError(f"it is longer than {MOST_BYTES:,} bytes, which are allowed.")
    try:
        return yaml.load(content.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise FdmError(f"it is not valid YAML: it is no text in UTF-8 ({error.reason}).") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise FdmError(f"it is not valid YAML{line}: {str(error.problem)[:QUOTED]}.") from error
    except yaml.YAMLError as error:
        raise FdmError(f"it is not valid YAML: {str(error).splitlines()[0][:QUOTED]}.") from error


def load(params_file: str | Path) -> Profile:
    """Read and check a profile; raises FdmError with one sentence that names the key, the value and what is allowed.

    A relative path is taken from the project's root.
    """
    path = root() / params_file
    if not path.is_file():
        known = ["digits", *sorted(p.parent.name for p in (root() / "profiles").glob("*/params.yaml"))]
        raise FdmError(f"There is no {params_file}; the profiles are {', '.join(known)}.")
    try:
        profile = Profile.model_validate(_values(path))
    except ValidationError as error:
        raise FdmError(f"{params_file}: {_sentence(error)}.") from error
    except FdmError as error:
        raise FdmError(f"{params_file}: {error}") from error
    # A copy that still names the original would overwrite the original's results.
    default = path.parent == root()
    name = "digits" if default else path.parent.name
    place = ("params.yaml", ".") if default else (f"profiles/{name}/params.yaml", "../..")
    for key, value in {"profile": name, "params_file": place[0], "root": place[1]}.items():
        if getattr(profile, key) != value:
            raise FdmError(
                f"{params_file}: {key}: {quoted(getattr(profile, key))} is not allowed; in this place it is {value!r}."
            )
    return profile


def find(name: str) -> Profile:
    """The profile of that name: `digits` from params.yaml, any other from profiles/<name>/params.yaml."""
    return load("params.yaml" if name == "digits" else f"profiles/{name}/params.yaml")
