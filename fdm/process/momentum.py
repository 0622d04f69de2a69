"""FDM's two changes: the scale of the critically damped process, for c_in, and the warm-up of the loss weight.

What lies behind them, the damped oscillator, is in `oscillator` (arXiv 2306.06991).
"""

from fdm.process.schedule import Array, B, exp

CEILING_START, CEILING_END = 5.0, 500.0  # of the loss weight during the warm-up, claim C5


def scale_fdm(t: Array, multiplier: float = 1.0) -> Array:
    """Scale of the critically damped process, s(t) = (1 + m B(t)) exp(-m B(t)) (FDM, claim C2).

    It falls from s(0) = 1 with no slope in B, without ever changing sign.
    """
    mB = multiplier * B(t)
    return (1 + mB) * exp(-mB)


def weight_ceiling(step: int, warmup_steps: int) -> float | None:
    """Ceiling on the loss weight at optimiser step `step` = 0, 1, ..., or None once the warm-up is over.

    It grows geometrically, 5 (500/5)^(step/warmup_steps). The published code counts calls of the loss on each
    process and forgets the count when it resumes; here it is the optimiser step, which the training state holds.
    """
    if step >= warmup_steps:
        return None
    return CEILING_START * (CEILING_END / CEILING_START) ** (step / warmup_steps)
