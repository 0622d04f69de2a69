"""Equality with the published code, by the arrays recorded from it (tests/oracles/README.md)."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fdm.model import oracle
from fdm.model.denoiser import Denoiser
from fdm.model.unet import UNet
from fdm.process import momentum
from fdm.process.frameworks import FRAMEWORKS, coefficients
from fdm.process.schedule import sigma_vp
from fdm.samplers.dpm_solver import dpm_solver_pp, dpm_solver_pp_steps
from fdm.samplers.grids import Karras, LogSNR32
from fdm.samplers.heun import heun
from fdm.training import augmentation
from fdm.training.augmentation import Transforms
from fdm.training.objectives import denoising

from .conftest import ORACLES


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(ORACLES / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


PRECONDITIONING, LOSSES, SAMPLERS, AUGMENTATION = map(load, ["preconditioning", "losses", "samplers", "augmentation"])
MODELS = [
    (framework, *rest)
    for framework in ("vp", "ve", "edm")
    for rest in [("baseline", 1.0, ""), ("fdm", 1.0, "fdm_{}_m1"), ("fdm", 2.0, "fdm_{}_m2")]
]


@pytest.mark.parametrize(("framework", "kernel", "multiplier", "key"), MODELS)
def test_preconditioning(framework, kernel, multiplier, key):
    key = key.format(framework) or framework
    sigma = torch.tensor(PRECONDITIONING[f"{key}.sigma"])
    # c_skip and c_out were recorded from D itself, whose float32 sum rounds them by 6e-8 at most.
    for name, value in coefficients(framework, kernel, sigma.float(), multiplier)._asdict().items():
        expected = PRECONDITIONING[f"{key}.{name}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7 if name != "c_noise" else 1e-6, err_msg=name)
    model = torch.nn.Identity()
    ranges = Denoiser(model, framework, kernel, multiplier).sigma_range
    np.testing.assert_allclose(ranges, PRECONDITIONING[f"{key}.sigma_range"], rtol=1e-6)


def test_ve_ignores_the_multiplier_as_published_and_uses_it_as_derived():
    sigma = torch.tensor([0.02, 1.0, 50.0])
    one, two = (coefficients("ve", "fdm", sigma, m).c_in for m in (1.0, 2.0))
    assert torch.equal(one, two)
    assert not torch.equal(one, coefficients("ve", "fdm", sigma, 2.0, "as derived").c_in)


def test_sigma_of_t():
    t = PRECONDITIONING["vp.t"]
    np.testing.assert_allclose(sigma_vp(t), PRECONDITIONING["vp.sigma_of_t"], rtol=1e-12)


class HalfDenoiser:
    """The stand-in of the recorded losses, D(x) = x/2."""

    def __init__(self, framework):
        self.framework = framework

    def __call__(self, x, sigma, class_labels, augment_labels):
        return x / 2


@pytest.mark.parametrize("framework", ["vp", "ve", "edm"])
@pytest.mark.parametrize("warmup", [None, 20])
def test_losses(framework, warmup):
    draws, noises, expected = (
        torch.tensor(LOSSES[f"{framework}.warmup_{warmup}.{name}"]) for name in ("draw", "unit_noise", "loss")
    )
    images = torch.tensor(LOSSES["images"])
    for step, (draw, noise) in enumerate(zip(draws, noises, strict=True)):
        ceiling = momentum.weight_ceiling(step, warmup or 0)
        loss = denoising.loss(HalfDenoiser(framework), images, draw, noise, ceiling=ceiling)
        # Where D meets the image the difference of two near numbers keeps few digits: an absolute term allows it.
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5, atol=1e-5 * expected[step].mean().item())


@pytest.mark.parametrize("name", ["ddpmpp_edm", "ddpmpp_fdm_vp", "ncsnpp_ve", "ncsnpp_fdm_ve"])
def test_networks(name):
    arrays = load(f"network_{name}")
    config = json.loads(str(arrays["config"]))
    net = UNet(
        name.split("_")[0],
        config["img_resolution"],
        config["img_channels"],
        config["label_dim"],
        config["augment_dim"],
        config["model_channels"],
        config["channel_mult"],
        config["num_blocks"],
        config["attn_resolutions"],
        config["dropout"],
    )
    kernel = "fdm" if "fdm" in name else "baseline"
    denoiser = Denoiser(net, name.split("_")[-1], kernel, config.get("fdm_multiplier", 1.0)).eval()
    denoiser.load_state_dict({k[6:]: torch.tensor(v) for k, v in arrays.items() if k.startswith("state.")})
    x, sigma, class_labels, augment_labels = (
        torch.tensor(arrays[key]) if key in arrays else None for key in ("x", "sigma", "class_labels", "augment_labels")
    )
    with torch.no_grad():
        denoised = denoiser(x, sigma, class_labels, augment_labels).numpy()
    assert np.abs(denoised - arrays["denoised"]).max() < 1e-4 * arrays["denoised"].std()


@pytest.mark.parametrize(("name", "size"), json.loads((ORACLES / "network_sizes.json").read_text()).items())
def test_network_sizes(name, size):
    dataset, model = name.split(".")
    resolution, classes = (32, 10) if dataset == "cifar10" else (64, 0)
    with torch.device("meta"):
        net = UNet(model.split("_")[0], resolution, 3, classes, 9, 128, size["channel_mult"], 4, (16,))
    assert sum(p.numel() for p in net.parameters()) == size["parameters"]
    assert len(net.state_dict()) == size["state_dict_keys"]


class Mixture:
    """E[x0 | x, sigma] of the recorded Gaussian mixture, counting its calls."""

    def __init__(self):
        self.means, self.stds, self.weights = (torch.tensor(SAMPLERS[k]) for k in ("means", "stds", "weights"))
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        x, variance = x[:, :, 0, 0].double(), self.stds**2 + sigma.double() ** 2
        distance = ((x[:, None] - self.means) ** 2).sum(-1)
        share = (self.weights.log() - distance / 2 / variance - variance.log()).softmax(1)
        means = self.stds[:, None] ** 2 * x[:, None] + sigma.double() ** 2 * self.means  # of each component
        return ((share / variance)[..., None] * means).sum(1)[:, :, None, None]


def latents() -> Tensor:
    return torch.tensor(SAMPLERS["latents"]).double()


@pytest.mark.parametrize("sigma", [0.01, 1.0, 80.0])
def test_the_exact_denoiser_of_the_package_is_that_of_the_recorded_mixture(sigma):
    D = Mixture()
    exact = oracle.Mixture(D.weights, D.means[..., None, None], D.stds)
    x, level = D.means[0].reshape(1, -1, 1, 1) + sigma * latents(), torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(exact(x, level), D(x, level))


HEUN = [key for key in SAMPLERS if key.startswith("heun.") and not key.endswith("nfe")]
DPM = [key for key in SAMPLERS if key.startswith("dpmpp3s") and not key.endswith("calls")]


@pytest.mark.parametrize("key", HEUN)
def test_heun(key):
    _, framework, steps = key.split(".")
    D = Mixture()
    grid = Karras(0.02 if framework == "ve" else 0.002, 80.0, to_zero=True)
    *_, x = heun(D, latents() * grid.high, grid, int(steps.removeprefix("steps")))
    np.testing.assert_allclose(x, SAMPLERS[key], atol=1e-6, rtol=0)
    assert D.calls == SAMPLERS[f"{key}.nfe"]


@pytest.mark.parametrize("framework", ["vp", "ve", "edm"])
def test_heun_with_churn(framework):
    noise = torch.tensor(SAMPLERS[f"heun_churn.{framework}.noise"])
    grid = Karras(0.02 if framework == "ve" else 0.002, 80.0, to_zero=True)
    churn = {"S_churn": 30, "S_min": 0.01, "S_max": 1, "S_noise": 1.007}
    *_, x = heun(Mixture(), latents() * grid.high, grid, 18, lambda i: noise[i], **churn)
    np.testing.assert_allclose(x, SAMPLERS[f"heun_churn.{framework}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("key", DPM)
def test_dpm_solver(key):
    framework, rest = key.removeprefix("dpmpp3s.").split(".start")
    start, nfe = rest.split(".nfe")
    high = FRAMEWORKS["vp"].sigma_range[1] if start == "152.167" else float(start)
    D = Mixture()
    grid = LogSNR32(0.02 if framework == "ve" else 0.002, high)
    *_, x = dpm_solver_pp(D, latents() * high, grid, dpm_solver_pp_steps(int(nfe)))
    np.testing.assert_allclose(x, SAMPLERS[key], atol=1e-6, rtol=0)
    assert D.calls == SAMPLERS[f"{key}.calls"] == int(nfe)


def transforms(kind: str, labels: Tensor) -> list[Transforms]:
    """The transformations that recorded labels may mean: two for an anisotropic one, as (w, r) and (-w, r + pi)
    have the same label and undo each other."""
    zero = Transforms(*torch.zeros(len(Transforms._fields), len(labels)))
    first, second = labels[:, 0], labels[:, -1]
    if kind == "rotate":
        return [zero._replace(angle=torch.atan2(second, first + 1))]
    if kind == "translate":
        return [zero._replace(shift_x=first, shift_y=second)]
    if kind == "aniso":
        w, r = labels.norm(dim=1), torch.atan2(second, first)
        return [zero._replace(aniso=w, aniso_angle=r), zero._replace(aniso=-w, aniso_angle=r + math.pi)]
    return [zero._replace(**{kind: first})]


@pytest.mark.parametrize("kind", ["xflip", "yflip", "scale", "rotate", "aniso", "translate"])
def test_augmentation(kind):
    images, labels = torch.tensor(AUGMENTATION["input"]), torch.tensor(AUGMENTATION[f"{kind}.labels"])
    expected = torch.tensor(AUGMENTATION[f"{kind}.images"])
    candidates = transforms(kind, labels)
    errors = [(augmentation.transform(images, t) - expected).abs().amax(dim=(1, 2, 3)) for t in candidates]
    assert torch.stack(errors).amin(dim=0).max() < 1e-4
    columns = {"xflip": [0], "yflip": [1], "scale": [2], "rotate": [3, 4], "aniso": [5, 6], "translate": [7, 8]}[kind]
    for t in candidates:
        torch.testing.assert_close(t.labels()[:, columns], labels, atol=1e-5, rtol=1e-5)
        rest = [c for c in range(9) if c not in columns]
        assert t.labels()[:, rest].abs().max() == 0
