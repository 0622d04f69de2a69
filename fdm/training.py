"""The training loop, its state, and resuming.

Everything random in step k follows from (seed, k): the images, the noise, the augmentation, the dropout. The
state is therefore weights, their average, the optimiser and k, and a resumed training goes on to the same bits.
"""

import functools
import json
import math
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from dvclive import Live
from torch import Tensor
from tqdm import tqdm

from fdm import augmentation, checkpoints, losses
from fdm.data import Dataset, to_float
from fdm.errors import FdmError
from fdm.files import code_hash, digest, replace
from fdm.preconditioning import Denoiser
from fdm.profiles import SNAPSHOTS, Profile

# The modules whose source shapes a trained network; a test compares the list with the imports.
CODE = (
    "augmentation", "checkpoints", "data", "errors", "files", "kernels", "losses", "names", "networks",
    "preconditioning", "profiles", "training",
)  # fmt: skip


def describe(profile: Profile, name: str, dataset: Dataset) -> dict[str, Any]:
    """The sections `network` and `denoiser` of the description of a run's checkpoints.

    Raises FdmError for a run that is not trained here.
    """
    run, net, par = profile.run(name), profile.network, profile.training
    if net is None or par is None:
        raise FdmError(f"{name} is a published network; it is fetched, not trained.")
    channels, resolution, _ = dataset.shape
    return {
        "network": {
            "architecture": "ncsnpp" if run.framework == "ve" else "ddpmpp",
            "resolution": resolution,
            "channels": channels,
            "label_dim": dataset.classes if profile.dataset.conditional else 0,
            "augment_dim": augmentation.LABELS if par.augment > 0 else 0,
            "model_channels": net.model_channels,
            "channel_mult": run.channel_mult or net.channel_mult,
            "num_blocks": net.num_blocks,
            "attn_resolutions": net.attn_resolutions,
            "dropout": net.dropout,
        },
        "denoiser": {"framework": run.framework, "kernel": run.kernel, "multiplier": run.multiplier},
    }


def snapshot_name(share: float) -> str:
    """File name of the checkpoint kept after that share of the budget, such as 025.safetensors."""
    return f"{round(share * 100):03d}.safetensors"


def step_seed(seed: int, step: int) -> int:
    """A seed for one training step, 63 bits, unlike that of any neighbour."""
    return int(digest([seed, step]), 16)


class Order:
    """The order of the images: one permutation of all after another."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.epoch, self.permutation = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, first: int, count: int) -> Tensor:
        """Indices of the images number `first` to `first + count - 1` of the training, (count,)."""
        out = []
        while count > 0:
            epoch, offset = divmod(first, self.n)
            if epoch != self.epoch:
                generator = torch.Generator().manual_seed(step_seed(self.seed, -1 - epoch))
                self.epoch, self.permutation = epoch, torch.randperm(self.n, generator=generator)
            piece = self.permutation[offset : offset + count]
            out.append(piece)
            first, count = first + len(piece), count - len(piece)
        return torch.cat(out)


def ema_beta(images: int, batch: int, halflife_kimg: float, ramp: float) -> float:
    """Decay of the weights' average over one batch: a half-life of at most `ramp` times the images seen."""
    halflife = min(halflife_kimg * 1000, images * ramp)
    return 0.5 ** (batch / max(halflife, 1e-8))


def train(
    profile: Profile, name: str, dataset: Dataset, folder: Path, logs: Path, work: Path, device: str = "cpu"
) -> dict[str, float]:
    """Train one run and put its snapshots, `<percent>.safetensors`, into `folder` and DVCLive's logs into `logs`.

    The state is kept under `work` in a folder named by a hash of all that shapes the run, and removed at the end;
    an interrupted training resumes from it. Returns the final `loss` and the `resumed_kimg` it started from.
    Raises FdmError when the loss is not finite; the last good state is then kept.
    """
    description = describe(profile, name, dataset)
    run, par = profile.run(name), profile.training
    assert par is not None  # or describe would have refused
    shape = {
        "description": description, "run": run.model_dump(), "training": par.model_dump(exclude={"state_kimg"}),
        "dataset": dataset.sha256, "code": code_hash(CODE), "torch": torch.__version__, "device": device,
        "threads": profile.threads,
    }  # fmt: skip
    home = work / digest(shape)
    steps = math.ceil(par.budget_kimg * 1000 / par.batch)
    snapshots = {max(1, round(steps * share)): snapshot_name(share) for share in SNAPSHOTS}
    log_every, state_every = (max(1, round(kimg * 1000 / par.batch)) for kimg in (par.log_kimg, par.state_kimg))

    torch.manual_seed(step_seed(run.seed, 0))
    denoiser = checkpoints.build(description).to(device).train()
    ema = checkpoints.build(description).to(device).eval().requires_grad_(False)
    ema.load_state_dict(denoiser.state_dict())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=par.lr, betas=(0.9, 0.999), eps=1e-8, foreach=True)
    step, history = _resume(home, denoiser, ema, optimizer)
    saved, resumed_kimg = step, step * par.batch / 1000
    if step:
        print(f"{name}: resuming at {resumed_kimg:.1f} kimg from {home}", file=sys.stderr)

    order = Order(len(dataset.images), run.seed)
    weights: list[Tensor] = list(denoiser.parameters())
    averages: list[Tensor] = list(ema.parameters())
    one_hot = torch.eye(dataset.classes)[dataset.labels] if description["network"]["label_dim"] else None
    total, count = torch.zeros((), device=device), 0
    progress = tqdm(total=steps * par.batch, initial=step * par.batch, unit="img", unit_scale=True, desc=name)
    while step < steps:
        images_seen = step * par.batch
        seed = step_seed(run.seed, 1 + step)
        torch.manual_seed(seed)  # for dropout
        generator = torch.Generator(device).manual_seed(seed)
        index = order(images_seen, par.batch)
        images = to_float(dataset.images[index].to(device))
        class_labels = one_hot[index].to(device) if one_hot is not None else None
        augment_labels = None
        if par.augment > 0:
            transforms = augmentation.draw_transforms(par.batch, par.augment, generator)
            images, augment_labels = augmentation.transform(images, transforms), transforms.labels()
        u = losses.draw(run.framework, par.batch, generator)
        noise = torch.randn(images.shape, generator=generator, device=device)
        ceiling = losses.weight_ceiling(step, run.warmup_steps)
        loss = losses.loss(denoiser, images, u, noise, class_labels, augment_labels, ceiling)

        optimizer.zero_grad()
        (loss.sum() / par.batch).backward()
        for weight in weights:
            if weight.grad is not None:
                torch.nan_to_num(weight.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=weight.grad)
        for group in optimizer.param_groups:
            group["lr"] = par.lr * min(images_seen / max(par.lr_ramp_kimg * 1000, 1e-8), 1)
        optimizer.step()
        beta = ema_beta(images_seen, par.batch, par.ema_halflife_kimg, par.ema_ramp)
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - beta)

        step += 1
        total, count = total + loss.detach().mean(), count + 1
        progress.update(par.batch)
        if step % log_every == 0 or step == steps:
            mean = (total / count).item()
            if not math.isfinite(mean):
                raise FdmError(
                    f"The loss of {name} is {mean} after {step * par.batch / 1000:.1f} kimg; the last good state is "
                    f"kept in {home}. Lower training.lr or lengthen training.lr_ramp_kimg in {profile.params_file}."
                )
            history.append({"images": step * par.batch, "loss": mean, "lr": optimizer.param_groups[0]["lr"]})
            progress.set_postfix(loss=f"{mean:.4f}", refresh=False)
            total, count = torch.zeros((), device=device), 0
        if step in snapshots:
            extra = {
                "run": name,
                "images": step * par.batch,
                "dataset": dataset.sha256,
                "code": shape["code"],
            }
            checkpoints.save(home / snapshots[step], ema, description | extra)
        if count == 0 and (step - saved >= state_every or step == steps):  # never between two entries of the log
            _save_state(home, denoiser, ema, optimizer, step, history)
            saved = step
    progress.close()

    _log(logs, history)
    folder.mkdir(parents=True, exist_ok=True)
    for label in snapshots.values():
        replace(folder / label, functools.partial(shutil.copyfile, home / label))
    shutil.rmtree(home)
    return {"loss": history[-1]["loss"], "resumed_kimg": resumed_kimg}


def _log(logs: Path, history: list[dict[str, float]]) -> None:
    """Write the whole history through DVCLive, whose step is the number of training images."""
    with Live(str(logs), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for row in history:
            live.step = int(row["images"])
            for key in ("loss", "lr"):
                live.log_metric(key, row[key])
            live.make_summary()


def _save_state(
    home: Path, denoiser: Denoiser, ema: Denoiser, optimizer: torch.optim.Optimizer, step: int, history: list
) -> None:
    """Write the whole state atomically and keep the one before."""
    state = {
        "denoiser": denoiser.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(),
        "step": step, "history": json.dumps(history),
    }  # fmt: skip
    current, previous = home / "state.pt", home / "state.previous.pt"
    if current.exists():
        current.replace(previous)
    replace(current, lambda part: torch.save(state, part))


def _resume(
    home: Path, denoiser: Denoiser, ema: Denoiser, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Load the newest whole state into the three; returns its step and history, or 0 and nothing."""
    for path in (home / "state.pt", home / "state.previous.pt"):
        if not path.exists():
            continue
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # a damaged file can fail in many ways
            warnings.warn(f"{path} is damaged and left aside ({type(error).__name__})", stacklevel=2)
            continue
        denoiser.load_state_dict(state["denoiser"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], json.loads(state["history"])
    return 0, []
