"""What a denoiser and a solver get wrong, and gradients of the loss: where the truth is known, and how remembered."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fdm.__main__ import main
from fdm.data import sources
from fdm.files import FdmError, write_json
from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.params import SNAPSHOTS, snapshot_name
from fdm.process.frameworks import coefficients
from fdm.study import errors, networks, runs
from fdm.tasks import denoising, generation, gradients

from .conftest import change

EXACT, NETWORK, OTHER = "edm-baseline-exact-0", "edm-fdm-0", "ve-baseline-0"
IMAGES, LATENTS, NFE = 24, 4, [5, 9, 17]


def with_errors(smoke, dataset: str, **par):
    """The smoke profile with errors measured, on a data set by name."""
    wanted = {"images": IMAGES, "latents": LATENTS, "solvers": {"heun": NFE, "dpm-solver++": NFE}} | par
    return change(
        Path(smoke.params_file), dataset={"name": dataset}, training={"augment": 0.0}, evaluation={"errors": wanted}
    )


def prepared(profile):
    return sources.prepare(profile.dataset, profile.dataset_file)


def as_trained(profile, name, dataset, seed=7):
    """Put random networks in the place of those of a training, in which every weight matters."""
    for share in SNAPSHOTS:
        torch.manual_seed(seed)
        description = runs.specify(profile, name, dataset)
        denoiser = checkpoints.build(description)
        with torch.no_grad():
            for weight in denoiser.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02 * (1 + share))
        images = {"images": round(2000 * share)}
        checkpoints.save(profile.checkpoints(name) / snapshot_name(share), denoiser.eval(), description | images)
    write_json(profile.checkpoints(name) / checkpoints.EXPERIMENT, {"run": name, "experiment": f"{name} {seed}"})


def measured(profile, name, dataset, **options):
    return errors.measure(profile, name, dataset, runs.expected(profile, name, dataset), **options)


@pytest.fixture
def known(smoke, monkeypatch):
    """A profile on the known distribution whose analytic cell is the distribution's own denoiser, and the data set."""
    profile = with_errors(smoke, "exact-gaussians", gradients=["edm-fdm"], cells=["edm-fdm", "edm-baseline-exact"])
    dataset = prepared(profile)
    less = {"BATCHES": 2, "BATCH": 8, "SLOPES": 8, "CONVERGED": ("heun", 63)}
    for name, value in less.items():
        monkeypatch.setattr(errors, name, value)
    return profile, dataset


@pytest.fixture
def coarse(monkeypatch):
    """Three noise levels, where a test does not look at what is between them."""
    monkeypatch.setattr(errors, "SIGMAS", errors.SIGMAS[::8])


@pytest.fixture
def counted(monkeypatch):
    """The tasks that are called, by name."""
    calls = []
    for module, name in (
        (denoising, "squared_errors"), (denoising, "radius_slope"), (generation, "trajectory"), (gradients, "moments"),
    ):  # fmt: skip
        real = getattr(module, name)

        def counting(*args, real=real, name=name, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)
    return calls


# ------------------------------------------------------------------------------------ where the truth is known


def test_the_exact_denoiser_of_the_known_distribution_has_no_excess_and_its_samples_no_error(known):
    profile, dataset = known
    rows = measured(profile, EXACT, dataset)
    assert set(rows["quantity"]) == {"error", "excess", "radius slope", "solver error", "flow error", "network error"}
    by = rows.set_index("quantity")["value"]
    assert (by["excess"] == 0).all()
    assert (by["network error"] == 0).all()
    assert (by["error"] > 0).all()
    errors_by_level = rows[rows["quantity"] == "error"].sort_values("sigma")
    assert errors_by_level["value"].is_monotonic_increasing
    # At the highest it knows the class alone.
    classes = [dataset.held[dataset.held_labels == label] for label in range(10)]
    within = sum(float(((mine - mine.mean(0)) ** 2).sum()) for mine in classes) / dataset.held.numel()
    assert errors_by_level["value"].iloc[-1] == pytest.approx(within, rel=0.25)
    # At a high level the best guess moves little with x, and what is predicted is all of it.
    slopes = rows[rows["quantity"] == "radius slope"].set_index("sigma")["value"]
    assert slopes[80.0] == pytest.approx(1, abs=0.01)
    assert set(rows["images"].dropna()) == {"held out"}  # no image of it is ever trained on twice


def test_a_solvers_error_falls_with_its_evaluations_and_is_that_to_the_exact_flow_of_an_exact_denoiser(known):
    profile, dataset = known
    rows = measured(profile, EXACT, dataset)
    for sampler in ("heun", "dpm-solver++"):
        mine = rows[rows["sampler"] == sampler]
        solver, flow = (
            mine[mine["quantity"] == kind].set_index("nfe")["value"] for kind in ("solver error", "flow error")
        )
        assert solver.index.tolist() == NFE
        assert solver.iloc[0] > 2 * solver.iloc[-1] > 0
        assert solver.is_monotonic_decreasing
        assert solver.tolist() == flow.tolist()


@pytest.mark.slow
def test_a_networks_error_is_the_optimums_and_its_excess(known, coarse):
    """On average over images: the errors' difference has more noise than the excess, and the same mean."""
    profile, dataset = known
    as_trained(profile, NETWORK, dataset)
    images, labels = dataset.held[:400], dataset.held_labels[:400]
    denoiser, _ = networks.denoiser_of(profile, NETWORK, dataset, profile.checkpoints(NETWORK), 1.0)
    sigmas = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    of_network, of_optimum, excess = (
        denoising.squared_errors(D, images, labels, sigmas, exact)
        for D, exact in ((denoiser, None), (dataset.mixture, None), (denoiser, dataset.mixture))
    )
    assert of_network.shape == (3, 400)
    difference = of_network - of_optimum
    standard = difference.std(1) / 20
    assert ((difference.mean(1) - excess.mean(1)).abs() < 4 * standard).all()
    assert (excess.std(1) < difference.std(1)).all()
    rows = measured(profile, NETWORK, dataset)
    assert (rows[rows["quantity"] == "excess"]["value"] > 0).all()


def test_the_best_denoiser_of_finitely_many_images_has_no_error_on_those_that_it_knows(smoke):
    """Where nothing is known of the distribution, both sets are measured, and they differ."""
    profile = with_errors(smoke, "digits", solvers={"heun": [5]})
    dataset = prepared(profile)
    rows = measured(profile, EXACT, dataset)
    assert set(rows["quantity"]) == {"error", "radius slope", "solver error"}
    low = rows[(rows["quantity"] == "error") & (rows["sigma"] < 0.1)].groupby("images")["value"].max()
    assert low["training"] < 1e-4 < low["held out"]
    assert set(rows[rows["quantity"] == "error"]["n"]) == {IMAGES}


# ----------------------------------------------------------------------------------------------------- the table


@pytest.mark.slow
def test_the_table_has_each_quantity_at_its_levels_and_shares(known):
    profile, dataset = known
    as_trained(profile, NETWORK, dataset)
    told = []
    rows = measured(profile, NETWORK, dataset, advance=told.append)
    assert list(rows.columns) == [*errors.CONTEXT, *errors.MEASURED, *errors.ORIGIN]
    assert sum(told) == errors.evaluations(profile, NETWORK)
    counts = rows.groupby(["quantity", "duration"]).size().unstack()
    shares = [*SNAPSHOTS]
    assert counts.loc["error"].tolist() == counts.loc["excess"].tolist() == [24] * len(shares)
    # EDM's noise levels end at 80, and FDM's denoiser refuses others.
    assert counts.loc["radius slope"].tolist() == [5] * len(shares)
    early = [share for share in shares if share <= 0.25]
    for kind in ("norm", "noise"):
        found = counts.loc[f"gradient {kind}"].dropna()
        assert found.index.tolist() == early
        assert (found == 12 + 3).all()
    for kind, number in (("solver error", 6), ("flow error", 6), ("network error", 2)):
        assert counts.loc[kind].dropna().to_dict() == {1.0: number}
    of_training = rows[(rows["quantity"] == "gradient norm") & rows["sigma"].isna()]
    ceilings = of_training[of_training["duration"] == 0.25]["ceiling"].tolist()
    assert ceilings[1:] == [50, 5] and math.isnan(ceilings[0])
    assert set(rows["kimg"]) == {round(2000 * share) / 1000 for share in shares}
    assert set(rows[["run", "cell", "framework", "kernel", "seed"]].itertuples(index=False, name=None)) == {
        (NETWORK, "edm-fdm", "edm", "fdm", 0)
    }
    np.testing.assert_allclose(sorted(rows["sigma"].dropna().unique())[0], 0.02)
    weights = networks.weights_of(profile, NETWORK, dataset, profile.checkpoints(NETWORK))
    assert set(rows["checkpoint"]) == {key[:12] for key in weights.values()}


def test_solvers_and_gradients_are_measured_of_the_cells_that_are_named(known, coarse):
    profile, dataset = known
    as_trained(profile, OTHER, dataset)
    rows = measured(profile, OTHER, dataset)
    assert set(rows["quantity"]) == {"error", "excess", "radius slope"}
    assert rows["sampler"].isna().all()


def test_a_profile_that_measures_no_errors_has_an_empty_table(smoke, digits):
    rows = measured(smoke, EXACT, digits)
    assert rows.empty
    assert list(rows.columns) == [*errors.CONTEXT, *errors.MEASURED, *errors.ORIGIN]
    assert errors.evaluations(smoke, EXACT) == 0
    assert not smoke.errors(EXACT).exists()


@pytest.mark.parametrize(
    ("par", "sentence"),
    [
        ({"latents": 4, "solvers": {}}, "evaluation.errors: latents and solvers belong together"),
        ({"latents": 0}, "evaluation.errors: latents and solvers belong together"),
        ({"solvers": {"euler": [5]}}, "evaluation.errors.solvers: 'euler' is not known; there are heun, dpm-solver++"),
        ({"solvers": {"heun": [6]}}, "evaluation.errors.solvers, heun: Heun's method costs an odd number"),
        ({"cells": ["vp-fdm"]}, "evaluation.errors: there is no cell named vp-fdm"),
        ({"gradients": ["vp-fdm"]}, "evaluation.errors: there is no cell named vp-fdm"),
    ],
)
def test_errors_that_cannot_be_measured_are_refused_with_one_sentence(smoke, capsys, par, sentence):
    with pytest.raises(FdmError, match=r"evaluation\.errors"):
        with_errors(smoke, "digits", **par)
    assert main(["check", "--params", smoke.params_file]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"fdm: {smoke.params_file}: {sentence}")
    assert printed.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- the memory


@pytest.mark.slow
def test_what_is_remembered_is_not_measured_again_and_what_was_altered_is(known, coarse, counted):
    profile, dataset = known
    as_trained(profile, NETWORK, dataset)
    rows, memory = measured(profile, NETWORK, dataset), profile.errors(NETWORK)
    whole = memory.read_text()
    assert len(json.loads(whole)) == len(SNAPSHOTS) + 2 + 4
    counted.clear()
    assert measured(profile, NETWORK, dataset).to_csv() == rows.to_csv()
    assert counted == []

    found = json.loads(whole)
    keys = [key for key, entry in found.items() if entry["rows"][0]["quantity"] == "error"]
    found[keys[2]]["rows"][0]["value"] *= 1 + 1e-9
    levels = ["squared_errors"] * 2 + ["radius_slope"] * 5
    for content, calls in ((json.dumps(found), levels), (whole[:-9], None)):
        memory.write_text(content)
        counted.clear()
        assert measured(profile, NETWORK, dataset).to_csv() == rows.to_csv()
        assert counted == calls if calls else len(counted) > 7 * len(levels)
        assert json.loads(memory.read_text()) == json.loads(whole)


def test_an_interrupted_measurement_goes_on_and_ends_alike(known, counted):
    profile, dataset = known
    whole = measured(profile, EXACT, dataset)
    profile.errors(EXACT).unlink()

    def stop(n):
        raise KeyboardInterrupt

    counted.clear()
    with pytest.raises(KeyboardInterrupt):
        measured(profile, EXACT, dataset, advance=stop)
    assert set(counted) == {"squared_errors", "radius_slope"}
    counted.clear()
    assert measured(profile, EXACT, dataset).to_csv() == whole.to_csv()  # and twice is the same
    assert set(counted) == {"trajectory"}


@pytest.mark.slow
@pytest.mark.weekly
def test_another_network_and_another_training_are_measured_under_other_names(known, coarse):
    profile, dataset = known
    as_trained(profile, OTHER, dataset)
    first = measured(profile, OTHER, dataset)
    as_trained(profile, OTHER, dataset, seed=8)
    second = measured(profile, OTHER, dataset)
    for column in ("experiment", "checkpoint"):
        assert not set(first[column]) & set(second[column])
    assert (first["value"] != second["value"]).any()


def test_the_source_of_a_solver_names_its_errors_alone(known):
    """And that of Heun's method all solvers', as its many evaluations are what they are compared with."""
    profile, _ = known
    par = profile.evaluation.errors

    def names():
        return errors.experiments(profile, NETWORK, par, "trained", "dataset")

    before = names()
    assert len(set(before.values())) == len(before) == len(SNAPSHOTS) + 2 + 4
    others = {
        "samplers/dpm_solver": {"dpm-solver++"}, "samplers/heun": {"heun", "dpm-solver++"}, "study/figures": set(),
        "tasks/gradients": {what for _, what in before},
    }  # fmt: skip
    for module, renamed in others.items():
        path = Path("fdm") / f"{module}.py"
        source = path.read_text()
        path.write_text(f"{source}\n# Another word.\n")
        after = names()
        assert {what for (_, what), name in before.items() if name not in after.values()} == renamed, module
        path.write_text(source)


# ---------------------------------------------------------------------------------------------------- gradients

D = 64  # pixels


class Linear(torch.nn.Module):
    """F(x) = w0 x + w1: with EDM's coefficients and images of variance 1/4 the best weights are 0."""

    channels, resolution, label_dim = 1, 8, 0

    def __init__(self, w0: float, w1: float) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([w0, w1]))

    def forward(self, x, noise_labels, class_labels, augment_labels):
        return self.w[0] * x + self.w[1]


def linear(w0: float, w1: float) -> Denoiser:
    return Denoiser(Linear(w0, w1), "edm", "baseline").requires_grad_(False)


def draw(n: int, offset: int = 0):
    """Batches of n images of normal pixels of the deviation 1/2."""

    def batch(number):
        generator = torch.Generator().manual_seed(1000 + number + offset)
        return 0.5 * torch.randn(n, 1, 8, 8, generator=generator), torch.zeros(n, dtype=torch.int64)

    return batch


def test_moments_of_the_gradient_are_those_of_single_images():
    batches, n, sigma = 6, 5, 0.7
    found = gradients.moments(linear(0.2, -0.1), draw(n), batches, sigma)
    means = []
    for number in range(batches):
        images, _ = draw(n)(number)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(number))
        each = []
        for image, own in zip(images, noise, strict=True):
            w = torch.tensor([0.2, -0.1], requires_grad=True)
            x = image + sigma * own
            c = coefficients("edm", "baseline", torch.tensor(sigma))
            off = c.c_skip * x + c.c_out * (w[0] * c.c_in * x + w[1]) - image
            each.append(torch.autograd.grad((off**2).sum(), w)[0].double())
        means.append(torch.stack(each).mean(0))
    means = torch.stack(means)
    spread = float(means.var(0).sum())
    assert found.noise == pytest.approx(math.sqrt(n * spread), rel=1e-4)
    assert found.norm == pytest.approx(math.sqrt(float(means.mean(0).square().sum()) - spread / batches), rel=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_the_norm_and_the_noise_of_a_gradient_are_the_true_ones(sigma):
    """Of the mean: 2 d c_out^2 w. Of an image, by the moments of normal numbers, at the best weights."""
    c_out = float(coefficients("edm", "baseline", torch.tensor(sigma)).c_out)
    norm, _ = gradients.moments(linear(0.3, 0.4), draw(256), 40, sigma)
    assert norm == pytest.approx(2 * D * c_out**2 * 0.5, rel=0.1)
    _, noise = gradients.moments(linear(0.0, 0.0), draw(64), 100, sigma)
    # There the error is independent of x, of variance c_out^2: both derivatives have the variance 4 d c_out^4.
    assert noise == pytest.approx(math.sqrt(2 * 4 * D) * c_out**2, rel=0.15)


def test_over_the_levels_of_training_the_weight_makes_all_levels_alike_and_a_ceiling_less():
    """EDM's weight is 1 / c_out^2, so that the gradient of the mean is 2 d w at every level."""
    norm, noise = gradients.moments(linear(0.3, 0.4), draw(256), 20)
    assert norm == pytest.approx(2 * D * 0.5, rel=0.1)
    clamped = gradients.moments(linear(0.3, 0.4), draw(256), 20, ceiling=5.0)
    assert 0.1 * norm < clamped.norm < 0.8 * norm
    assert gradients.moments(linear(0.3, 0.4), draw(256), 20, ceiling=1e9) == (norm, noise)


def test_a_gradient_that_is_none_has_a_norm_of_nothing_though_its_estimate_has_one():
    """The square of an estimate's norm is too large by its own variance, which is taken off."""
    batches, n, sigma = 4, 8, 1.0
    squares, noise = [], []
    for trial in range(60):
        found = gradients.moments(linear(0.0, 0.0), draw(n, 10_000 * trial), batches, sigma)
        squares.append(found.norm**2)
        noise.append(found.noise**2)
    uncorrected = np.mean(noise) / (n * batches)
    # As noise is the same in every trial, some of it stays; without the correction it would be all.
    assert np.mean(squares) < 0.9 * uncorrected
    assert min(squares) == 0
    true = 2 * D * float(coefficients("edm", "baseline", torch.tensor(sigma)).c_out) ** 2 * 0.05
    found = [gradients.moments(linear(0.03, 0.04), draw(n, 10_000 * t), batches, sigma).norm ** 2 for t in range(60)]
    assert abs(np.mean(found) - true**2) < abs(np.mean(found) + uncorrected - true**2)


def test_moments_are_the_same_twice_and_leave_the_network_as_it_was():
    denoiser = linear(0.2, 0.1)
    first = gradients.moments(denoiser, draw(8), 3, 0.5)
    assert gradients.moments(denoiser, draw(8), 3, 0.5) == first
    assert gradients.moments(denoiser, draw(8), 3, 0.6) != first
    assert not denoiser.model.w.requires_grad
    assert denoiser.model.w.grad is None
    assert denoiser.model.w.tolist() == pytest.approx([0.2, 0.1])
