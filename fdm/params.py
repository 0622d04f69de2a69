"""What a run is: its data set, its network, its model and its training, as parameters that are checked.

They come from a profile's params.yaml, and need no torch.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Framework = str  # a name in fdm.process.frameworks.FRAMEWORKS
Kernel = Literal["baseline", "fdm"]
Architecture = Literal["ddpmpp", "ncsnpp"]
# Where FDM's published code and its derivation differ: VE's multiplier, and what tau in c_in is.
VEMultiplier = Literal["as published", "as derived"]
Tau = Literal["sigma", "time"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
# One change to a model, to see what in a kernel acts. `c_in 1`: the network is given x as it is. `c_in unit`: x over
# sqrt(sigma^2 + sigma_data^2), as EDM has it. `c_in rescaled`: the kernel's c_in times the constant with which the mean
# square of the input over the noise levels of training is 1. `radius embedded`: the network is told the root mean
# square of x over what is usual; `radius output`: its output is multiplied by it. `edm output`: EDM's c_skip and c_out.
Variant = Literal["c_in 1", "c_in unit", "c_in rescaled", "radius embedded", "radius output", "edm output"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)*$")]

# Shares of the budget at which a network is kept: the paper's 50, 100, 150 and 200 Mimg, and before them each doubling.
QUARTERS = (0.25, 0.5, 0.75, 1.0)
SNAPSHOTS = (0.03125, 0.0625, 0.125, *QUARTERS)


def snapshot_name(share: float) -> str:
    """File name of the checkpoint kept after that share of the budget, such as 025.safetensors."""
    return f"{round(share * 100):03d}.safetensors"


class Strict(BaseModel):
    """A table of parameters in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetParams(Strict):
    """Which images, and whether the networks are told their classes."""

    name: str  # in fdm.data.sources.SOURCES
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


class HeadParams(Strict):
    """Training of heads for second and third moments on networks that are trained."""

    kimg: Positive
    batch: Count
    lr: Positive  # falls to 0 in a line


class GivenParams(Strict):
    """An estimate of the image that a network is given beside x: from a measurement, as in `fdm.tasks.physics`."""

    task: Literal["sr2", "sr4"]
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # standard deviation of the measurement's
    shift: bool  # whether the clean image in x moves to the estimate as noise grows, as DoSSR has it


class FewStepsParams(Strict):
    """How a network is trained further so that few evaluations are enough."""

    # mmd: MMD-DDM; siddm: as its paper has it; siddm toy, siddm ufo: as its two released codes have it; ddgan: a plain
    # denoising diffusion GAN.
    objective: Literal["mmd", "siddm", "siddm toy", "siddm ufo", "ddgan"]
    steps: Count  # evaluations that it is trained for
    # Of mmd: the space of features in which samples are compared, which must not be the one that scores.
    features: Literal["classifier", "efficientnet-lite0"] | None = None

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained beside the network, which becomes a generator."""
        return self.objective != "mmd"

    @model_validator(mode="after")
    def _belongs(self) -> "FewStepsParams":
        if (self.features is None) != self.adversarial:
            raise ValueError("few_steps.features belongs to the objective mmd, and to no other")
        return self


Seed = Annotated[int, Field(ge=0, lt=2**31)]


class CheckpointParams(Strict):
    """A published network that a run takes instead of training one."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    # Of the file, hexadecimal; where it is unknown the first download says it, to be written here.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    kimg: Positive  # how long it was trained, as its publishers state


class CellParams(Strict):
    """One model, framework x kernel, with what FDM adds and where its network is from. A run is a cell and a seed."""

    # train: here; finetune: here, from the last network of the cell `start` with the same seed; fetch: published by
    # others; analytic: exact, of the training images, from every one of which E[x0 | x] is known in closed form.
    source: Literal["train", "finetune", "fetch", "analytic"] = "train"
    framework: Framework
    kernel: Kernel
    multiplier: Positive = 1.0  # FDM's m
    ve_multiplier: VEMultiplier = "as published"  # which is 1 for VE, whatever the multiplier says
    tau: Tau = "sigma"  # what FDM's c_in is a function of: sigma, linearly, as published, or the framework's own time
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # optimiser steps of loss-weight warm-up; 0 is none
    variant: Variant | None = None
    given: GivenParams | None = None  # what the network sees besides x
    # Where a run's network differs from the profile's, or its training.
    channel_mult: list[Count] | None = None
    model_channels: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    lr: Positive | None = None
    budget_kimg: Positive | None = None
    batch: Count | None = None
    ema_halflife_kimg: Positive | None = None
    ema_ramp: Positive | None = None
    few_steps: FewStepsParams | None = None
    start: str | None = None
    checkpoint: CheckpointParams | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None  # where they are others than the profile's

    @property
    def generates(self) -> bool:
        """Whether its networks draw clean images, and are no denoisers."""
        return self.few_steps is not None and self.few_steps.adversarial

    @model_validator(mode="after")
    def _belongs(self) -> "CellParams":
        for key, source in (("start", "finetune"), ("checkpoint", "fetch")):
            if (getattr(self, key) is None) != (self.source != source):
                raise ValueError(f"{key} belongs to a cell with source: {source}, and to no other")
        if self.few_steps and self.source != "finetune":
            raise ValueError("few_steps belongs to a cell with source: finetune, and to no other")
        return self


class RunParams(CellParams):
    """One training: a cell and its seed."""

    cell: str
    seed: Seed
