"""The card of a network that is kept in git: what it is, how it was trained, what it scores, what it is not."""

import pandas as pd

from fdm.data.sources import SOURCES
from fdm.process.frameworks import FRAMEWORKS
from fdm.process.joint import JOINT
from fdm.study import tables
from fdm.study.measurements import frechet, label, select
from fdm.study.profiles import USUAL_TOP, Profile

ENDS = ("safetensors", "md")  # of the files of a network that is kept


def card(profile: Profile, name: str, rows: pd.DataFrame) -> str:
    """The card of a run's last network as Markdown, from its parameters and its measurements `rows`."""
    run, par, net = profile.run(name), profile.training, profile.network
    assert par is not None and net is not None
    metric = frechet(rows)
    last = select(rows, run=name, duration=1.0, sigma_max=USUAL_TOP, latents=0, reference=0)
    last = last[(last["metric"] != metric) | (last["n"] == profile.evaluation.samples)]
    scores = last[last["metric"].isin([metric, "KID"])].pivot(
        index=["sampler", "options", "nfe"], columns="metric", values="value"
    )
    names = [f"{tables.sampler_label(sampler, options)}, {nfe} evaluations" for sampler, options, nfe in scores.index]
    scores.insert(0, "", names)
    text = scores.map(lambda x: x if isinstance(x, str) else f"{x:.2f}")
    source, side = SOURCES[profile.dataset.name], profile.dataset.resolution
    data = source.label
    given = "the class as a one-hot vector" if profile.dataset.conditional else "no class"
    changes = (
        f"FDM's input scaling with multiplier m = {run.multiplier:g}, loss-weight warm-up of {run.warmup_steps} steps"
    )
    default = profile.root == "."
    where, place = ("", "") if default else (f" --profile {profile.profile}", f', "{profile.profile}"')
    kinds = {"ddpmpp": "DDPM++", "ncsnpp": "NCSN++"}
    model, kind = label(run.framework, run.kernel), kinds[(FRAMEWORKS | JOINT)[run.framework].architecture]
    return f"""# {name}: {model} on {data}

**What it is.** The denoiser D(x; σ) of {model}, an average over the training of a {kind} of {net.model_channels}
channels, for pictures of {side}×{side} in [-1, 1]. It is given {given}.
{name}.safetensors holds the weights and, as metadata, all that is needed to build it.

**How it was trained.** {par.budget_kimg:g} thousand training images of {data} in batches of {par.batch}, Adam with rate
{par.lr:g}, seed {run.seed}; {changes if run.kernel == "fdm" else "no change by FDM"}. All parameters:
[{profile.params_file}](../../../{profile.params_file}); the loss: [{run.cell}.csv](../training/{run.cell}.csv).

**What it scores**, at n = {profile.evaluation.samples}, lower is better; all numbers and where they are from:
[measurements.csv](../runs/{run.cell}/measurements.csv).

{tables.markdown(text)}
**What it is not.** A network of a study in miniature, trained for minutes. It draws nothing but {side}×{side} pictures
like those of {data}, may repeat them, and its scores say nothing about another scale.

**Use.** `python -m fdm sample --run {name}{where} --n 64 --out grid.png`, or `fdm.load("{name}"{place})` in Python.

**Licence.** MIT, as the rest of the study. {source.licence}
"""
