"""Time training, evaluation, sampling, features and scoring of three networks, against other implementations in turn.

What is compared is timed in the same process, round after round, so that a busy machine slows all alike. A line is the
median over the rounds, with quartiles; a ratio is the median of the rounds' own ratios.
"""

import argparse
import copy
import functools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from tqdm import tqdm

from benchmarks.plain import PARTS, plain
from fdm.files import FdmError, root, write_json, write_text
from fdm.metrics import distances, features
from fdm.model import checkpoints, cost
from fdm.model.denoiser import Denoiser
from fdm.process.frameworks import EDM
from fdm.repro import plan
from fdm.study import profiles, provenance, runs
from fdm.tasks import generation
from fdm.training import processes
from fdm.training.objectives import denoising

NFE = 5  # of the sampling that is timed; its cost grows in proportion
RUN_NFE = 25  # of the evaluation of a run, which is reckoned from that
EXTRACTOR = "efficientnet-lite0"
SCORED = 5000  # samples that are scored
SECONDS = 0.3  # that one reading lasts at least


class Shape(NamedTuple):
    """A network's description, as in a checkpoint, and the batch it is timed with."""

    description: dict[str, Any]
    batch: int


def shapes() -> dict[str, Shape]:
    """The default profile's network, one of moderate size, and the paper's for CIFAR-10; all EDM-FDM."""
    out = {}
    for name, profile, batch in (("digits", "digits", 128), ("paper", "paper-cifar10", 8)):
        p = profiles.find(profile)
        out[name] = Shape(runs.specify(p, "edm-fdm-0", plan.dataset_of(p)), batch)
    network = {
        "architecture": "ddpmpp", "resolution": 32, "channels": 3, "model_channels": 64, "channel_mult": [1, 2, 2],
        "num_blocks": 2, "attn_resolutions": [16],
    }  # fmt: skip
    out["small"] = Shape({"network": network, "denoiser": out["digits"].description["denoiser"]}, 32)
    return {name: out[name] for name in ("digits", "small", "paper")}


# ------------------------------------------------------------------------------------------ what is compared


class _Diffusers(torch.nn.Module):
    """diffusers' UNet2DModel of the nearest shape, called as a raw network F is."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        net = {"label_dim": 0, "dropout": 0.1} | description["network"]
        self.channels, self.resolution, self.label_dim = net["channels"], net["resolution"], net["label_dim"]
        levels = [net["resolution"] >> level for level in range(len(net["channel_mult"]))]
        attention = [side in net["attn_resolutions"] for side in levels]
        self.net = UNet2DModel(
            sample_size=net["resolution"], in_channels=net["channels"], out_channels=net["channels"],
            layers_per_block=net["num_blocks"], dropout=net["dropout"], norm_num_groups=4,
            block_out_channels=tuple(net["model_channels"] * mult for mult in net["channel_mult"]),
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
            attention_head_dim=None, num_class_embeds=net["label_dim"] or None,
        )  # fmt: skip

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: None) -> Tensor:
        return self.net(x, noise_labels, None if class_labels is None else class_labels.argmax(1)).sample  # type: ignore[operator]


class Variant(NamedTuple):
    """One implementation: its denoiser, and how it is run and trained."""

    denoiser: Denoiser
    precision: Any = "fp32"
    compiled: bool = False
    usual: bool = False  # whether optimiser and average work parameter by parameter


def variants(shape: Shape, against: list[str], device: str) -> dict[str, Variant]:
    """The implementations of one network by name; the first is this package's."""
    torch.manual_seed(0)
    fresh = checkpoints.build(shape.description)
    for parameter in fresh.parameters():  # fresh networks are silent at the end, and zeros may be cheap
        if parameter.ndim > 1:
            parameter.data += 0.01 * torch.randn_like(parameter)
    ours = copy.deepcopy(fresh).to(device).to(memory_format=torch.channels_last)
    out = {"fdm": Variant(ours)}
    if device != "cpu":
        out["fdm, bf16 compiled"] = Variant(copy.deepcopy(ours), "bf16", compiled=True)
    if "plain" in against:
        out["plain"] = Variant(plain(copy.deepcopy(fresh).to(device)), usual=True)
    for part in against:
        if part in PARTS:
            out[f"plain {part}"] = Variant(plain(copy.deepcopy(fresh).to(device), (part,)), usual=part == "optimiser")
    if "diffusers" in against:
        other = Denoiser(_Diffusers(shape.description), **shape.description["denoiser"])
        out["diffusers"] = Variant(other.to(device), usual=True)
    return out


def labels_of(denoiser: Denoiser, n: int, device: str) -> Tensor | None:
    """One-hot class labels (n, classes) for a conditional network."""
    classes = denoiser.classes
    return torch.eye(classes, device=device)[torch.arange(n) % classes] if classes else None


# ---------------------------------------------------------------------------------------- what is measured


def training_step(variant: Variant, batch: int, device: str) -> Callable[[], None]:
    """Loss, backward pass, guard against infinities, Adam, and the weights' average, as in `fdm.training`."""
    denoiser = copy.deepcopy(variant.denoiser).train()
    average = copy.deepcopy(variant.denoiser).eval().requires_grad_(False)
    adam = torch.optim.Adam(denoiser.parameters(), lr=1e-4, fused=None if variant.usual else True)
    weights, averages = list[Tensor](denoiser.parameters()), list[Tensor](average.parameters())
    net: Any = denoiser.model
    images = torch.rand(batch, net.channels, net.resolution, net.resolution, device=device) * 2 - 1
    labels, generator = labels_of(denoiser, batch, device), torch.Generator(device).manual_seed(0)
    model: Any = torch.compile(denoiser) if variant.compiled else denoiser

    def step() -> None:
        u = EDM.draw(batch, generator)
        noise = torch.randn(images.shape, generator=generator, device=device)
        with torch.autocast(device, cost.DTYPE[variant.precision], enabled=variant.precision != "fp32"):
            loss = denoising.loss(model, images, u, noise, labels, framework="edm")
        (loss.sum() / batch).backward()
        for weight in weights:
            if weight.grad is not None:
                torch.nan_to_num(weight.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=weight.grad)
        adam.step()
        adam.zero_grad()
        if variant.usual:
            for mean, weight in zip(averages, weights, strict=True):
                mean.copy_(weight.detach().lerp(mean, 0.999))
        else:
            torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 0.001)

    return step


def network_evaluation(variant: Variant, batch: int, device: str) -> Callable[[], Any]:
    """One evaluation of the denoiser for a batch."""
    denoiser = variant.denoiser.eval()
    net: Any = denoiser.model
    x = torch.randn(batch, net.channels, net.resolution, net.resolution, device=device)
    sigma, labels = torch.linspace(0.01, 10, batch, device=device), labels_of(denoiser, batch, device)
    model: Any = torch.compile(denoiser) if variant.compiled else denoiser

    @torch.inference_mode()
    def evaluate() -> Any:
        with torch.autocast(device, cost.DTYPE[variant.precision], enabled=variant.precision != "fp32"):
            return model(x, sigma, labels)

    return evaluate


def heun_sampling(variant: Variant, batch: int, device: str) -> Callable[[], Any]:
    """A batch of samples by Heun's method in NFE evaluations."""
    denoiser = variant.denoiser.eval()

    def sample() -> Any:
        with torch.autocast(device, cost.DTYPE[variant.precision], enabled=variant.precision != "fp32"):
            return generation.sample(denoiser, range(batch), "heun", NFE, device)

    return sample


def feature_extraction(variant: Variant, batch: int, device: str) -> Callable[[], Any]:
    """Features of a batch of images; the extractor is the same for all variants."""
    net: Any = variant.denoiser.model
    extract, _ = features.extractor(EXTRACTOR, device)
    images = torch.randint(256, (batch, net.channels, net.resolution, net.resolution), dtype=torch.uint8)
    return functools.partial(extract, images)


def scoring(width: int = 320) -> Callable[[], Any]:
    """All that is computed from the features of SCORED samples, against as many of real images."""
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(2, SCORED, width, generator=generator)

    def score() -> None:
        rows = distances.score(generated, real, "FD")
        distances.interval(generated, real, rows[0]["value"])

    return score


def frechet(width: int = 2048) -> dict[str, Callable[[], Any]]:
    """The Frechet distance of SCORED samples with as many features as Inception's, here and in torch-fidelity."""
    generated, real = torch.randn(2, SCORED, width, generator=torch.Generator().manual_seed(0))

    def theirs() -> Any:
        return fid_statistics_to_metric(*(fid_features_to_statistics(f) for f in (generated, real)), False)

    return {"fdm": functools.partial(distances.frechet_distance, generated, real), "torch-fidelity": theirs}


MAKE = {"training step": training_step, "evaluation": network_evaluation, "sampling": heun_sampling,
        "features": feature_extraction}  # fmt: skip


# ------------------------------------------------------------------------------------------------ measuring


def _timed(function: Callable[[], Any], times: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(times):
        function()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def measure(functions: dict[str, Callable[[], Any]], rounds: int, device: str, title: str) -> dict[str, list[float]]:
    """Seconds that one call takes, by name, in each of the rounds; after two calls to warm up."""
    times = {}
    for name, function in functions.items():
        _timed(function, 1, device)
        times[name] = max(1, round(SECONDS / _timed(function, 1, device)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in tqdm(range(rounds), desc=title, unit="round"):
        for name, function in functions.items():
            seconds[name].append(_timed(function, times[name], device))
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def _peak(device: str) -> float:
    status = Path("/proc/self/status")
    if device != "cpu" or not status.exists():
        return cost.peak_memory(device)
    # What getrusage tells of a new process begins with its parent's memory.
    (high,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(high) / 1024


def _memory_of(name: str, operation: str, device: str, threads: int, results: Any) -> None:
    torch.set_num_threads(threads)
    shape = shapes()[name]
    variant = variants(shape, [], device)["fdm"]
    before = _peak(device)
    function = MAKE[operation](variant, shape.batch, device)
    function()
    function()
    results.put(_peak(device) - before)


def memory(name: str, operation: str, device: str, threads: int) -> float:
    """MiB that the operation adds to the most that its process held while the network was made, in one of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_memory_of, args=(name, operation, device, threads, results))
    process.start()
    process.join()
    if process.exitcode:
        raise FdmError(f"The {operation} of {name} failed in a process of its own (exit code {process.exitcode}).")
    return results.get()


def timed(label: str, operation: str) -> bool:
    """Whether an implementation is timed doing that: all have the same extractor, and a part shows in the first two."""
    return (
        label == "fdm"
        or operation in ("training step", "evaluation")
        or (operation == "sampling" and not label.startswith("plain "))
    )


def bench(names: list[str], against: list[str], rounds: int, threads: int, device: str) -> dict[str, Any]:
    """All measurements of the named shapes: rows, and what they were taken on."""
    machine = provenance.origin(time.time())
    rows, peaks = [], [cost.matmul_peak(device, "fp32")]
    shares = {}
    scores = measure({"fdm": scoring()}, max(2, rounds // 3), device, "scoring")["fdm"]
    for name in names:
        shape = shapes()[name]
        candidates = variants(shape, against, device)
        flops = {label: cost.flops(variant.denoiser) for label, variant in candidates.items()}
        taken: dict[str, list[float]] = {}  # seconds an image
        for operation in MAKE:
            used = {label: v for label, v in candidates.items() if timed(label, operation)}
            functions = {label: MAKE[operation](v, shape.batch, device) for label, v in used.items()}
            seconds = measure(functions, rounds, device, f"{name}: {operation}")
            needs = memory(name, operation, device, threads)
            for label, values in seconds.items():
                work = {"training step": cost.TRAINING, "evaluation": 1, "sampling": NFE, "features": 0}[operation]
                peak = peaks[0] if used[label].precision == "fp32" else cost.matmul_peak(device, "bf16")
                speed = spread([shape.batch / value for value in values])
                rows.append({
                    "shape": name, "operation": operation, "variant": label, "images_per_second": speed,
                    "parameters": sum(p.numel() for p in used[label].denoiser.parameters()),
                    "flops_per_image": work * flops[label] or None,
                    "share_of_peak": speed["median"] * work * flops[label] / peak if work else None,
                    "peak_memory_mib": needs if label == "fdm" else None,
                    "times_as_fast_as": {
                        other: spread([b / a for a, b in zip(values, seconds[other], strict=True)])
                        for other in seconds if label.startswith("fdm") and other != label
                    },
                })  # fmt: skip
            taken[operation] = [value / shape.batch for value in seconds["fdm"]]
        sampled = [value * RUN_NFE / NFE for value in taken["sampling"]]
        scored = [value + statistics.median(scores) / SCORED for value in taken["features"]]
        whole = [1 / (a + b) for a, b in zip(sampled, scored, strict=True)]
        for operation, speeds in (("scoring", [SCORED / value for value in scores]), ("whole run", whole)):
            rows.append({"shape": name, "operation": operation, "variant": "fdm", "images_per_second": spread(speeds)})
        shares[name] = statistics.median(scored) / statistics.median(sampled)
        peaks.append(cost.matmul_peak(device, "fp32"))
    distances = measure(frechet(), max(2, rounds // 3), device, "Frechet distance")
    return {
        "machine": machine | {"threads": threads}, "rounds": rounds,
        "matmul_peak_gflops": [peak / 1e9 for peak in peaks],
        "scoring_over_sampling": shares,
        "frechet_distance_seconds": {name: spread(seconds) for name, seconds in distances.items()}, "rows": rows,
    }  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = []
    for row in measured["rows"]:
        speed = row["images_per_second"]
        ratios = [f"{r['median']:.2f} x {other} [{r['low']:.2f}, {r['high']:.2f}]"
                  for other, r in row.get("times_as_fast_as", {}).items()]  # fmt: skip
        share, needs = row.get("share_of_peak"), row.get("peak_memory_mib")
        lines.append({
            "network": row["shape"], "what": row["operation"], "by": row["variant"],
            "images/s": f"{speed['median']:,.4g} [{speed['low']:,.4g}, {speed['high']:,.4g}]",
            "of the peak": "" if share is None else f"{share:.0%}",
            "MiB": "" if needs is None else f"{needs:.0f}", "as fast as": "; ".join(ratios),
        })  # fmt: skip
    machine = measured["machine"]
    peak = statistics.median(measured["matmul_peak_gflops"])
    shares = ", ".join(f"{share:.1%} ({name})" for name, share in measured["scoring_over_sampling"].items())
    seconds = {name: f"{s['median']:.2g} s [{s['low']:.2g}, {s['high']:.2g}]"
               for name, s in measured["frechet_distance_seconds"].items()}  # fmt: skip
    columns = list(lines[0])
    return "\n".join([
        f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}; medians of "
        f"{measured['rounds']} rounds in turn, quartiles in brackets; float32 products reach {peak:,.0f} GFLOP/s.",
        "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(line.values())} |" for line in lines),
        "", f"*whole run* is the evaluation of one: {SCORED:,} samples in {RUN_NFE} evaluations each, their features "
        f"and their scores, reckoned from the lines above it. Scoring costs, in units of sampling: {shares}.",
        f"The Fréchet distance of {SCORED:,} samples with 2,048 features takes {seconds['fdm']}; torch-fidelity's "
        f"{seconds['torch-fidelity']}.", "",
    ])  # fmt: skip


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--shape", nargs="+", choices=["digits", "small", "paper"], default=["digits", "small", "paper"]
    )
    parser.add_argument(
        "--against", nargs="+", choices=["plain", *PARTS, "diffusers"], default=["plain"],
        help="timed in turn with this one (plain: as networks are usually written, in benchmarks/plain.py; a part: "
        "that part alone so)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="readings of each (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (as many as cores)")
    parser.add_argument("--out", type=Path, default=root() / "work" / "bench", help="folder for the table (work/bench)")
    args = parser.parse_args()
    try:
        if args.rounds < 2 or args.threads < 1:
            raise FdmError("Two rounds or more are needed, and one thread or more.")
        if "diffusers" in args.against:
            try:
                import diffusers  # noqa: F401
            except ImportError:
                raise FdmError("diffusers is not installed: uv pip install --group dev.") from None
        torch.set_num_threads(args.threads)
        measured = bench(args.shape, args.against, args.rounds, args.threads, processes.device())
    except FdmError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    name = f"{processes.device()}-{args.threads}"
    write_json(args.out / f"{name}.json", measured)
    write_text(args.out / f"{name}.md", table(measured))
    print(table(measured))
    print(f"{args.out / name}.json and .md are written.", file=sys.stderr)
    return 0
