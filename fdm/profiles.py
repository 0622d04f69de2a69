"""A profile: the validated parameters of one scale of the study, read from its params.yaml."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fdm.errors import FdmError
from fdm.files import root
from fdm.names import Framework, Kernel, Tau, VEMultiplier

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)*$")]

# The quarters of the budget at which a network is kept: the paper's 50, 100, 150 and 200 Mimg.
SNAPSHOTS = (0.25, 0.5, 0.75, 1.0)


class Strict(BaseModel):
    """A table of parameters in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetParams(Strict):
    """Which images, and whether the networks are told their classes."""

    name: Literal["digits", "fashion-mnist", "cifar10", "ffhq", "afhqv2", "folder"]
    resolution: Literal[8, 16, 32, 64]
    conditional: bool
    # Of the official archive, or of anyone's images; relative to the project. Without it: downloads/, else the network.
    path: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_images(self) -> "DatasetParams":
        if self.name == "folder" and self.path is None:
            raise ValueError("dataset.path is missing; the data set folder needs the path of its images")
        return self


class NetworkParams(Strict):
    """Size of the U-Net; the framework decides between DDPM++ and NCSN++."""

    model_channels: Annotated[int, Field(ge=8, multiple_of=8)]
    channel_mult: Annotated[list[Count], Field(min_length=1)]
    num_blocks: Count
    attn_resolutions: list[Count]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class TrainingParams(Strict):
    """How a network is trained. Amounts of training are in kimg, thousands of training images."""

    budget_kimg: Positive
    batch: Count
    lr: Positive
    lr_ramp_kimg: Annotated[float, Field(ge=0)]
    ema_halflife_kimg: Positive
    ema_ramp: Positive  # the half-life is at most this share of the images seen
    augment: Share
    log_kimg: Positive
    state_kimg: Positive  # how often the whole state is written, for resuming
    # How it is computed. A batch is shared out to `processes` (one a GPU) and, in each, to `accumulation` parts.
    processes: Count = 1
    accumulation: Count = 1
    precision: Precision = "fp32"  # of matrix products and convolutions; weights and losses stay float32
    compile: bool = False  # torch.compile: a minute at the start, and a C++ compiler


class EvaluationParams(Strict):
    """What is sampled and how it is scored."""

    extractor: Literal["efficientnet-lite0", "inception-v3-compat"]
    reference: Literal["half", "all"]  # the real images to compare with; `half` leaves as many for calibration
    samples: Annotated[int, Field(ge=16)]
    batch: Count
    duration_nfe: Count  # Table 1's number of evaluations, with Heun's sampler
    nfe: Annotated[list[Count], Field(min_length=1)]  # Tables 2 and 3, and the figure
    # In an ablation these are for the cells named in `thorough`, which are besides sampled from other highest noise
    # levels and scored with `samples_noise` samples, in sets of `samples`, to see what latents and n change.
    thorough: list[str] = []
    sigma_max: list[Positive] = []
    samples_noise: Count | None = None
    processes: Count = 1  # batches are shared out to them (one a GPU); the samples do not depend on it
    precision: Precision = "fp32"  # of the sampled networks; features are always float32


class CheckpointParams(Strict):
    """A published network that a run takes instead of training one."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    # Of the file, hexadecimal; where it is unknown the first download says it, to be written here.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    kimg: Positive  # how long it was trained, as its publishers state


class CellParams(Strict):
    """One model: framework x kernel, and what FDM adds. A cell of an ablation is trained with several seeds."""

    framework: Framework
    kernel: Kernel
    multiplier: Positive = 1.0  # FDM's m
    ve_multiplier: VEMultiplier = "as published"  # which is 1 for VE, whatever the multiplier says
    tau: Tau = "sigma"  # what FDM's c_in is a function of: sigma, linearly, as published, or the framework's own time
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # optimiser steps of loss-weight warm-up; 0 is none
    channel_mult: list[Count] | None = None  # where a run's network differs from the profile's


Seed = Annotated[int, Field(ge=0, lt=2**31)]


class RunParams(CellParams):
    """One training: a model and its seed."""

    seed: Seed
    checkpoint: CheckpointParams | None = None  # a published network, in a profile that trains none


class Profile(Strict):
    """All parameters of a profile. One whose runs are published networks has no `network` and no `training`."""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    root: Literal[".", "../.."]
    params_file: str
    threads: Count
    dataset: DatasetParams
    network: NetworkParams | None = None
    training: TrainingParams | None = None
    evaluation: EvaluationParams
    runs: Annotated[dict[RunName, RunParams], Field(min_length=1)]
    # An ablation has these two in place of runs: every cell is trained with every seed.
    cells: dict[RunName, CellParams] = {}
    seeds: list[Seed] = []

    @model_validator(mode="before")
    @classmethod
    def _expand_cells(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "cells" not in values:
            return values
        if "runs" in values:
            raise ValueError("runs must be absent where there are cells; a profile has one of the two")
        cells, seeds = values["cells"], values.get("seeds")
        if not isinstance(cells, dict) or not all(isinstance(cell, dict) for cell in cells.values()):
            raise ValueError("cells must be a table of tables, one a cell")
        for name in cells:
            if "." in str(name):
                raise ValueError(f"cells.{name}: a name has no dot, which DVC reads as a path")
        if not isinstance(seeds, list) or len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: {seeds!r} is not allowed; it must be a list of two different numbers or more")
        runs = {f"{name}-{seed}": cell | {"seed": seed} for name, cell in cells.items() for seed in seeds}
        return values | {"runs": runs}

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        for nfe in [self.evaluation.duration_nfe, *self.evaluation.nfe]:
            if nfe % 2 == 0 or nfe < 3:
                raise ValueError(f"evaluation.nfe: {nfe} is not allowed; Heun's sampler needs odd numbers from 3 up")
        par = self.evaluation
        for key in ("nfe", "sigma_max", "thorough"):
            if len(set(getattr(par, key))) < len(getattr(par, key)):
                raise ValueError(f"evaluation.{key}: {getattr(par, key)} is not allowed; an entry is there twice")
        if max(par.sigma_max, default=0) >= 80:
            raise ValueError(
                f"evaluation.sigma_max: {max(par.sigma_max):g} is not allowed; it must be below the usual 80"
            )
        if par.samples_noise is not None and par.samples_noise <= par.samples:
            raise ValueError(
                f"evaluation.samples_noise: {par.samples_noise} is not allowed; it must be above samples, {par.samples}"
            )
        if self.training and self.training.batch % (self.training.processes * self.training.accumulation):
            raise ValueError(
                f"training.batch: {self.training.batch} is not allowed; it must be a multiple of processes x "
                f"accumulation, {self.training.processes} x {self.training.accumulation}"
            )
        for section in ("network", "training"):
            if self.published != (getattr(self, section) is None):
                must = "must be absent where the runs are published checkpoints" if self.published else "is missing"
                raise ValueError(f"{section} {must}")
        for name, run in self.runs.items():
            if self.published and run.checkpoint is None:
                raise ValueError(
                    f"runs.{name}.checkpoint is missing; the networks of a profile are all published or none"
                )
            want = f"{run.framework}-{run.kernel}-{run.seed}"
            cell = name.removesuffix(f"-{run.seed}")
            if self.cells and not f"{cell}-".startswith(f"{run.framework}-{run.kernel}-"):
                raise ValueError(f"cells.{cell}: the name of a cell begins with framework-kernel, {want[:-2]}")
            if not self.cells and name != want:
                raise ValueError(f"runs.{name}: a run is named framework-kernel-seed, and this one is {want}")
            if self.network is None:
                continue
            depth = len(run.channel_mult or self.network.channel_mult) - 1
            if self.dataset.resolution % 2**depth:
                raise ValueError(
                    f"runs.{name}: {depth} halvings do not divide a resolution of {self.dataset.resolution}"
                )
        return self

    def seeds_of(self, cell: str) -> list[str]:
        """Names of the runs of a cell; raises FdmError for a cell that the profile does not have."""
        if cell not in self.cells:
            raise FdmError(f"{self.params_file} has no cell named {cell}; it has {', '.join(self.cells) or 'none'}.")
        return [f"{cell}-{seed}" for seed in self.seeds]

    @property
    def parts(self) -> dict[str, list[str]]:
        """What is on record together, and its runs: in an ablation a cell with all its seeds, else a run by itself."""
        return {cell: self.seeds_of(cell) for cell in self.cells} or {run: [run] for run in self.runs}

    @property
    def published(self) -> bool:
        """Whether the runs are published networks, which are fetched and not trained."""
        return any(run.checkpoint for run in self.runs.values())

    @property
    def build(self) -> Path:
        """Folder of what DVC caches: data, features, checkpoints."""
        return root() / "build" / self.profile

    @property
    def results(self) -> Path:
        """Folder of what is committed: tables, figures, measurements, executed notebooks."""
        return root() / "results" / self.profile

    def run(self, name: str) -> RunParams:
        """Parameters of one run; raises FdmError for a name that the profile does not have."""
        if name not in self.runs:
            raise FdmError(f"{self.params_file} has no run named {name}; it has {', '.join(self.runs)}.")
        return self.runs[name]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, which would otherwise silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise FdmError(f"line {node.start_mark.line + 1}: the key {key} is given twice.")
        return super().construct_mapping(node, deep)


def _table(keys: tuple[int | str, ...]) -> type[BaseModel]:
    """The table of parameters at that place in a profile."""
    if not keys:
        return Profile
    if keys[0] == "cells":
        return CellParams
    if keys[0] == "runs":
        return CheckpointParams if keys[-1] == "checkpoint" else RunParams
    annotation = Profile.model_fields[str(keys[0])].annotation
    (table,) = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
    return table


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        return f"{key} is not a known key; allowed here are {', '.join(_table(first['loc'][:-1]).model_fields)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {first['input']!r} is not allowed; {first['msg'][0].lower()}{first['msg'][1:]}"


def load(params_file: str | Path) -> Profile:
    """Read and check a profile; raises FdmError with one sentence that names the key, the value and what is allowed.

    A relative path is taken from the project's root.
    """
    path = root() / params_file
    if not path.is_file():
        known = ["digits", *sorted(p.parent.name for p in (root() / "profiles").glob("*/params.yaml"))]
        raise FdmError(f"There is no {params_file}; the profiles are {', '.join(known)}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
        profile = Profile.model_validate(values)
    except ValidationError as error:
        raise FdmError(f"{params_file}: {_sentence(error)}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FdmError(f"{params_file} is not valid YAML: {' '.join(str(error).split())}.") from error
    except FdmError as error:
        raise FdmError(f"{params_file}, {error}") from error
    # A copy that still names the original would overwrite the original's results.
    default = path.parent == root()
    name = "digits" if default else path.parent.name
    place = ("params.yaml", ".") if default else (f"profiles/{name}/params.yaml", "../..")
    for key, value in {"profile": name, "params_file": place[0], "root": place[1]}.items():
        if getattr(profile, key) != value:
            raise FdmError(
                f"{params_file}: {key}: {getattr(profile, key)!r} is not allowed; in this place it is {value!r}."
            )
    return profile


def find(name: str) -> Profile:
    """The profile of that name: `digits` from params.yaml, any other from profiles/<name>/params.yaml."""
    return load("params.yaml" if name == "digits" else f"profiles/{name}/params.yaml")
