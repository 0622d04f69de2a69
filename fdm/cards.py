"""The card of a network that is kept in git: what it is, how it was trained, what it scores, what it is not."""

import pandas as pd

from fdm import study, tables
from fdm.profiles import Profile

ENDS = ("safetensors", "md")  # of the files of a network that is kept


def card(profile: Profile, name: str, rows: pd.DataFrame) -> str:
    """The card of a run's last network as Markdown, from its parameters and its measurements `rows`."""
    run, par, net = profile.run(name), profile.training, profile.network
    assert par is not None and net is not None
    metric, last = study.frechet(rows), rows[rows["duration"] == 1]
    scores = last[last["metric"].isin([metric, "KID"])].pivot(
        index=["sampler", "nfe"], columns="metric", values="value"
    )
    scores.insert(0, "", [f"{study.SAMPLERS[sampler]}, {nfe} evaluations" for sampler, nfe in scores.index])
    text = scores.map(lambda x: x if isinstance(x, str) else f"{x:.2f}")
    data, side = study.DATA[profile.dataset.name], profile.dataset.resolution
    given = "the class as a one-hot vector" if profile.dataset.conditional else "no class"
    changes = (
        f"FDM's input scaling with multiplier m = {run.multiplier:g}, loss-weight warm-up of {run.warmup_steps} steps"
    )
    licences = {"digits": "The digits are the UCI Machine Learning Repository's (CC BY 4.0), from scikit-learn."}
    model, kind = study.label(run.framework, run.kernel), "NCSN++" if run.framework == "ve" else "DDPM++"
    return f"""# {name}: {model} on {data}

**What it is.** The denoiser D(x; σ) of {model}, an average over the training of a {kind} of {net.model_channels}
channels, for pictures of {side}×{side} in [-1, 1]. It is given {given}.
{name}.safetensors holds the weights and, as metadata, all that is needed to build it.

**How it was trained.** {par.budget_kimg:g} thousand training images of {data} in batches of {par.batch}, Adam with rate
{par.lr:g}, seed {run.seed}; {changes if run.kernel == "fdm" else "no change by FDM"}. All parameters:
[{profile.params_file}](../../../{profile.params_file}); the loss: [{name}.csv](../training/{name}.csv).

**What it scores**, at n = {profile.evaluation.samples}, lower is better; all numbers and where they are from:
[measurements.csv](../runs/{name}/measurements.csv).

{tables.markdown(text)}
**What it is not.** A network of a study in miniature, trained for minutes. It draws nothing but {side}×{side} pictures
like those of {data}, may repeat them, and its scores say nothing about another scale.

**Use.** `python -m fdm sample --run {name} --n 64 --out grid.png`, or `fdm.load("{name}")` in Python.

**Licence.** MIT, as the rest of the study. {licences.get(profile.dataset.name, "")}
""".replace("  \n", "\n")
