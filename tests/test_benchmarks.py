"""The benchmark compares equal things, and its table says what was measured."""

import functools

import pytest
import torch

from benchmarks import bench
from benchmarks.plain import PARTS, plain
from fdm.model import checkpoints

pytestmark = pytest.mark.slow

NETWORK = {"resolution": 8, "channels": 1, "label_dim": 10, "augment_dim": 0, "model_channels": 8,
           "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0}  # fmt: skip


def description(architecture="ddpmpp"):
    return {"network": NETWORK | {"architecture": architecture}, "denoiser": {"framework": "edm", "kernel": "fdm"}}


@pytest.mark.parametrize("parts", [PARTS, *((part,) for part in PARTS)], ids=" ".join)
@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp"])
def test_the_plain_implementation_computes_the_same(architecture, parts):
    torch.manual_seed(0)
    denoiser = checkpoints.build(description(architecture)).double()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    other = checkpoints.build(description(architecture)).double()
    other.load_state_dict(denoiser.state_dict())
    x, sigma, labels = torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.eye(10)[:4].double()
    results = []
    for candidate in (denoiser.to(memory_format=torch.channels_last), plain(other, parts)):
        F = candidate.model(x.double(), sigma.double(), labels)
        F.square().sum().backward()
        results.append([F, *(parameter.grad for parameter in candidate.parameters() if parameter.grad is not None)])
    assert len(results[0]) > 50
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


def test_a_benchmark_of_a_small_network(monkeypatch):
    monkeypatch.setattr(bench, "shapes", lambda: {"digits": bench.Shape(description(), 4)})
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "SCORED", 300)
    monkeypatch.setattr(bench, "memory", lambda *_: 1.0)
    monkeypatch.setattr(bench, "frechet", functools.partial(bench.frechet, 16))
    measured = bench.bench(["digits"], ["plain"], 2, 1, "cpu")
    by = {(row["operation"], row["variant"]): row for row in measured["rows"]}
    operations = (*bench.MAKE, "scoring", "whole run")
    assert set(by) == {(operation, variant) for operation in operations for variant in ("fdm", "plain")
                       if variant == "fdm" or operation not in ("features", "scoring", "whole run")}  # fmt: skip
    for (operation, variant), row in by.items():
        speed = row["images_per_second"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert (operation in ("features", "scoring", "whole run")) == (row.get("share_of_peak") is None)
        assert set(row.get("times_as_fast_as", ())) <= ({"plain"} if variant == "fdm" else set())
    assert by["training step", "fdm"]["flops_per_image"] == 3 * by["evaluation", "fdm"]["flops_per_image"]
    assert measured["scoring_over_sampling"]["digits"] > 0
    parts = [by[part, "fdm"]["images_per_second"]["median"] for part in ("sampling", "features", "scoring")]
    reckoned = 1 / (bench.RUN_NFE / bench.NFE / parts[0] + 1 / parts[1] + 1 / parts[2])
    assert by["whole run", "fdm"]["images_per_second"]["median"] == pytest.approx(reckoned, rel=0.5)
    assert all(0 < seconds["median"] < 1 for seconds in measured["frechet_distance_seconds"].values())
    text = bench.table(measured)
    assert text.count("\n| digits") == len(by)
    assert f"{by['evaluation', 'plain']['images_per_second']['median']:,.4g}" in text


@pytest.mark.weekly
def test_peak_memory_is_measured_in_a_process_of_its_own():
    assert 1 < bench.memory("digits", "training step", "cpu", 1) < 2000


def test_both_frechet_distances_are_of_the_same_samples(monkeypatch):
    monkeypatch.setattr(bench, "SCORED", 100)
    ours, theirs = (distance() for distance in bench.frechet(8).values())
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_a_missing_comparison_and_a_wrong_number_are_sentences(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--against", "diffusers"])
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    assert bench.main() == 1
    assert capsys.readouterr().err == "benchmarks: diffusers is not installed: uv pip install --group dev.\n"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--rounds", "1"])
    assert bench.main() == 1
    assert "Two rounds or more" in capsys.readouterr().err
