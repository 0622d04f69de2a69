"""The changes to a model that show what in a kernel acts: each is what it says, and nothing else."""

import math
from pathlib import Path

import pytest
import torch

from fdm.files import FdmError
from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.params import Variant
from fdm.process.frameworks import FRAMEWORKS, coefficients
from fdm.study import profiles, runs

from .conftest import change
from .test_models import small

SIGMA = torch.tensor([0.01, 0.1, 0.5, 1.0, 3.0, 20.0, 79.0], dtype=torch.float64)
MODELS = [(framework, kernel) for framework in FRAMEWORKS for kernel in ("baseline", "fdm")]
VARIANTS: list[Variant] = [
    "c_in 1", "c_in unit", "c_in rescaled", "radius embedded", "radius output", "edm output",
]  # fmt: skip


def inputs_of_training(framework: str, n: int) -> torch.Tensor:
    """n noise levels as training draws them, written out once more."""
    generator = torch.Generator().manual_seed(1)
    if framework == "edm":
        return torch.exp(-1.2 + 1.2 * torch.randn(n, generator=generator, dtype=torch.float64))
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    if framework == "ve":
        return 0.02 * (100 / 0.02) ** u
    t = 1 + u * (1e-5 - 1)
    return (torch.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1).sqrt()


# ------------------------------------------------------------------------------------------------- coefficients


@pytest.mark.parametrize(("framework", "kernel"), MODELS)
def test_each_variant_changes_the_coefficients_that_it_names_and_no_other(framework, kernel):
    usual = coefficients(framework, kernel, SIGMA, 2.0)
    variance = SIGMA**2 + 0.25
    expected = {
        None: {},
        "c_in 1": {"c_in": torch.ones_like(SIGMA)},
        "c_in unit": {"c_in": 1 / variance.sqrt()},
        "radius embedded": {},
        "radius output": {},
        "edm output": {"c_skip": 0.25 / variance, "c_out": 0.5 * SIGMA / variance.sqrt()},
    }
    for variant, changed in expected.items():
        found = coefficients(framework, kernel, SIGMA, 2.0, variant=variant)
        for name, value in usual._asdict().items():
            torch.testing.assert_close(getattr(found, name), changed.get(name, value), rtol=1e-12, atol=0)
    rescaled = coefficients(framework, kernel, SIGMA, 2.0, variant="c_in rescaled")
    factor = rescaled.c_in / usual.c_in
    torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-12, atol=0)
    assert all(map(torch.equal, rescaled._replace(c_in=usual.c_in), usual))


@pytest.mark.parametrize(("framework", "kernel"), MODELS)
@pytest.mark.parametrize("tau", ["sigma", "time"])
def test_rescaled_the_input_has_a_mean_square_of_one_over_the_noise_levels_of_training(framework, kernel, tau):
    """By simulation: images of a standard deviation of 0.5, with noise."""
    sigma = inputs_of_training(framework, 400_000)
    generator = torch.Generator().manual_seed(2)
    noise, image = torch.randn(2, len(sigma), generator=generator, dtype=torch.float64)
    c_in = coefficients(framework, kernel, sigma, 2.0, "as derived", tau, "c_in rescaled").c_in
    squares = (c_in * (0.5 * image + sigma * noise)).square()
    standard = float(squares.std()) / len(sigma) ** 0.5
    assert float(squares.mean()) == pytest.approx(1, abs=4 * standard + 1e-3)
    assert 4 * standard < 0.15


def test_only_edm_without_fdm_is_as_large_before_as_after():
    """So that rescaling changes something where the others are concerned."""
    sizes = {}
    for framework, kernel in MODELS:
        plain, rescaled = (
            coefficients(framework, kernel, SIGMA, 2.0, variant=each).c_in for each in (None, "c_in rescaled")
        )
        sizes[framework, kernel] = float((plain / rescaled)[0])
    assert sizes["edm", "baseline"] == pytest.approx(1, abs=1e-3)
    assert abs(math.log(sizes["edm", "fdm"])) > 0.1
    assert sizes["ve", "baseline"] > 10


def test_a_multiplier_that_is_ignored_does_not_change_how_an_input_is_rescaled():
    published = [coefficients("ve", "fdm", SIGMA, m, variant="c_in rescaled").c_in for m in (1.0, 2.0)]
    assert torch.equal(*published)
    derived = coefficients("ve", "fdm", SIGMA, 2.0, "as derived", variant="c_in rescaled").c_in
    assert not torch.allclose(derived, published[0])


# ----------------------------------------------------------------------------------------------------- networks


class Constant(torch.nn.Module):
    """A raw network that says the same whatever it is given, and remembers what that was."""

    channels, resolution, label_dim = 1, 8, 0

    def forward(self, x, noise_labels, class_labels, augment_labels):
        self.given, self.told = x, augment_labels
        return torch.ones_like(x)


def lengths(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize(("framework", "kernel"), MODELS)
def test_with_its_output_scaled_D_follows_the_length_of_x_where_the_network_does_not(framework, kernel):
    sigma, x = torch.tensor(3.0), 3 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    c = coefficients(framework, kernel, sigma, 2.0)
    for times in (0.5, 1.0, 2.0):
        scaled, plain = (
            Denoiser(Constant(), framework, kernel, 2.0, variant=each)(times * x, sigma) for each in
            ("radius output", None)
        )  # fmt: skip
        torch.testing.assert_close(plain, c.c_skip * times * x + c.c_out.expand_as(x))
        usual = math.sqrt(3.0**2 + 0.25)
        expected = c.c_skip * times * x + c.c_out * times * lengths(x) / usual * torch.ones_like(x)
        torch.testing.assert_close(scaled, expected)


def test_with_its_radius_embedded_the_network_is_told_how_long_x_is_and_given_the_same_input():
    """For noise alone what it is told has about the deviation 1, and it is 0 where x is as long as usual."""
    net = Constant()
    denoiser = Denoiser(net, "vp", "baseline", variant="radius embedded")
    sigma, generator = torch.tensor(40.0), torch.Generator().manual_seed(0)
    x = 40 * torch.randn(4000, 1, 8, 8, generator=generator)
    denoiser(x, sigma)
    assert net.told.shape == (4000, 1)
    assert float(net.told.std()) == pytest.approx(1, abs=0.05)
    assert float(net.told.mean()) == pytest.approx(0, abs=0.15)
    usual = x / lengths(x) * math.sqrt(40.0**2 + 0.25)
    denoiser(usual, sigma)
    torch.testing.assert_close(net.told, torch.zeros_like(net.told), rtol=0, atol=1e-4)
    denoiser(1.1 * usual, sigma)
    torch.testing.assert_close(net.told, torch.full_like(net.told, math.sqrt(128) * math.log(1.1)), rtol=1e-3, atol=0)
    given = net.given
    Denoiser(net, "vp", "baseline")(1.1 * usual, sigma)
    assert torch.equal(net.given, given)
    assert net.told is None


@pytest.mark.parametrize(("framework", "kernel"), MODELS)
def test_a_network_without_variant_is_the_one_before_and_each_variant_is_another(framework, kernel):
    """The one before: c_skip x + c_out F(c_in x), from the coefficients of the process."""
    plain, sigma = small(framework, kernel), torch.tensor([0.3, 2.0, 30.0])
    x, told = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.eye(10)[:3]
    x = x * (sigma**2 + 0.25).sqrt().reshape(3, 1, 1, 1)
    D = plain(x, sigma, told)
    c = [each.reshape(3, 1, 1, 1) for each in coefficients(framework, kernel, sigma)]
    expected = c[0] * x + c[1] * plain.model(c[2] * x, c[3].flatten(), told, None)
    torch.testing.assert_close(D, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(Denoiser(plain.model, framework, kernel, variant=None)(x, sigma, told), D)
    same = {("edm", "baseline"): {"c_in unit", "edm output"}, ("edm", "fdm"): {"edm output"},
            ("ve", "baseline"): {"c_in 1"}}  # fmt: skip
    for variant in VARIANTS:
        if variant in ("radius embedded", "c_in rescaled"):  # a network of its own; a factor, which may be 1
            continue
        other = Denoiser(plain.model, framework, kernel, variant=variant)(x, sigma, told)
        near = torch.allclose(other, D, rtol=2e-3, atol=1e-3)
        assert near == (variant in same.get((framework, kernel), set())), variant


# ----------------------------------------------------------------------------------------------------- profiles


def cells(variant: Variant | None, **more) -> dict:
    return {"cells": {"edm-baseline": {"framework": "edm", "kernel": "baseline", "variant": variant, **more}}}


def test_a_network_that_is_told_its_radius_cannot_be_told_of_augmentations(study):
    path = study / "profiles" / "smoke" / "params.yaml"
    with pytest.raises(FdmError) as raised:
        change(path, **cells("radius embedded"))
    sentence = (
        "profiles/smoke/params.yaml: cells.edm-baseline.variant: the network is told of augmentations instead; "
        "set augment to 0."
    )
    assert str(raised.value).removeprefix(f"{study}/") == sentence
    change(path, training={"augment": 0.0})
    with pytest.raises(FdmError, match=r"cells\.edm-baseline\.variant: 'c_in 2' is not allowed; input should be 'c_in"):
        change(path, **cells("c_in 2"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_part_of_what_names_a_training_and_comes_back_with_its_checkpoint(
    smoke, digits, tmp_path, variant
):
    path = Path(smoke.params_file)
    plain = change(path, training={"augment": 0.0}, **cells(None))
    name = runs.experiment(plain, "edm-baseline-0", digits)
    profile = change(path, **cells(variant))
    assert runs.experiment(profile, "edm-baseline-0", digits) != name
    description = runs.specify(profile, "edm-baseline-0", digits)
    assert description["network"]["augment_dim"] == (1 if variant == "radius embedded" else 0)
    torch.manual_seed(0)
    denoiser = checkpoints.build(description)
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    checkpoints.save(tmp_path / "x.safetensors", denoiser.eval(), description)
    back, _ = checkpoints.load(tmp_path / "x.safetensors", description)
    assert back.variant == variant
    x, told = torch.randn(2, 1, 8, 8), torch.eye(10)[:2]
    torch.testing.assert_close(back(x, torch.tensor(2.0), told), denoiser(x, torch.tensor(2.0), told))


def test_a_cell_may_have_its_own_rate_and_width(smoke, digits):
    own = {"lr": 1e-4, "model_channels": 16}
    profile = change(Path(smoke.params_file), **cells(None, **own))
    assert profile.parameters("edm-baseline-0").lr == 1e-4
    description = runs.specify(profile, "edm-baseline-0", digits)
    assert description["training"]["lr"] == 1e-4
    assert description["network"]["model_channels"] == 16
    assert smoke.parameters("edm-fdm-0").lr == smoke.training.lr


def test_the_cells_of_the_evidence_have_every_variant():
    profile = profiles.find("exact")
    assert {cell.variant for cell in profile.cells.values()} == {None, *VARIANTS}
