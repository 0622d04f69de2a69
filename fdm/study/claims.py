"""The verdicts on the paper's claims: on formulas, checked by numbers, and on training, by the evidence's rules."""

from typing import Any

import numpy as np

from fdm.process import oscillator
from fdm.study import evidence
from fdm.study.profiles import Profile

CLAIMS = {
    "C1": "A step of the diffusion is a step of stochastic gradient descent",
    "C2": "The critically damped kernel does not oscillate, and decays faster than with any other damping",
    "C3": "Comparable quality for half of the training",
    "C4": "Comparable quality for a third of the sampling steps",
    "C5": "The warm-up of the loss weight makes early training better",
    "kernel": "FDM's input scaling makes training better",
}
PAPER = {2: "heun", 3: "dpm-solver++"}  # the samplers of the paper's Tables 2 and 3


def _claim(key: str, subject: str, verdict: str, numbers: dict[str, Any]) -> dict[str, Any]:
    return {"claim": key, "subject": subject, "verdict": verdict, "numbers": numbers}


def claims_of_kernel() -> list[dict[str, Any]]:
    """C1 and C2, which are about formulas, checked by numbers.

    C1 is an identity where the two steps agree to 1e-12 for 10,000 random values: for VP. VE and EDM do not shrink x,
    so that the step's learning rate is 0, and the claim is empty for them. C2 has three parts: at critical damping the
    scale never grows or changes sign; its envelope decays at the fastest rate in the end; and it is the first to stay
    below 1 %. It holds when all do, and partly when some do. Times are in units of the undamped oscillator.
    """
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 100))
    pairs = zip(rng.uniform(0.5, 1, 100).tolist(), rng.uniform(0, 1, 100).tolist(), strict=True)  # alpha, beta
    error = max(float(np.abs(oscillator.sgd_step(x, eps, a, b) - (a * x + b * eps)).max()) for a, b in pairs)
    tau, damping = np.linspace(0, 40, 4001), np.round(np.arange(0.05, 3.001, 0.01), 2)
    critical = oscillator.oscillator(tau, 1.0)
    settled = [float(tau[np.flatnonzero(np.abs(oscillator.oscillator(tau, z)) >= 0.01)[-1]]) for z in damping]
    rates = oscillator.decay_rate(damping)
    fastest, first = float(damping[rates.argmax()]), float(damping[np.argmin(settled)])
    parts = [bool((np.diff(critical) <= 0).all() and (critical > 0).all()), fastest == 1, first == 1]
    verdict = "holds" if all(parts) else "partly" if any(parts) else "does not hold"
    return [
        _claim("C1", "VP", "identity" if error < 1e-12 else "does not hold", {"largest difference": error}),
        _claim("C1", "VE", "empty", {"learning rate": 0.0}),
        _claim("C1", "EDM", "empty", {"learning rate": 0.0}),
        _claim("C2", "formula", verdict, {
            "critical damping: falls, and keeps its sign": parts[0],
            "damping ratio of the fastest decay in the end": fastest,
            "damping ratio that is first below 1 %": first,
            "time until below 1 %, that ratio": min(settled),
            "time until below 1 %, critical": settled[int(np.flatnonzero(damping == 1)[0])],
        }),
    ]  # fmt: skip


def claims(profile: Profile) -> dict[str, Any]:
    """Verdicts on C1 and C2, and, of the evidence, on C3 to C5 and on the kernel, with the numbers behind them.

    What has not been measured has no verdict.
    """
    out = claims_of_kernel()
    if profile.conclusions == "05_evidence":
        for row in evidence.verdicts(profile).to_dict("records"):
            numbers = {key: value for key, value in row.items() if isinstance(value, float | int) and value == value}
            subject = f"{row['framework']}, {row['target']}"
            out.append(_claim(row["claim"], subject, row["verdict"], {"metric": row["metric"]} | numbers))
    return {"profile": profile.profile, "rules": "fdm/study/rules.py and evidence.py", "claims": out}
