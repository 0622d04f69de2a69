"""What rounding does to the numbers: the whole profile, trained and scored under other arithmetic.

The same sums in another order differ in the last bits. In most training runs it stays at that. A
network that leaves part of its samples as noise amplifies it, and its numbers move by several percent. Here each run is
computed again with other instruction sets of the same processor, and compared with the record.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from fdm.files import FdmError, root, write_text
from fdm.study import agreement, measurements
from fdm.study.profiles import Profile

# Name -> environment. A processor ignores what it does not have.
VARIANTS: dict[str, dict[str, str]] = {
    "without AVX": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "NEHALEM"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "HASWELL"},
}
WORK = """
import sys
from fdm.data import sources
from fdm.study import profiles, runs
profile = profiles.load(sys.argv[1])
sources.prepare(profile.dataset, profile.dataset_file)
for step in (runs.reference, runs.train, runs.evaluate):
    step(profile)
"""


def _run(profile: Profile, env: dict[str, str]) -> pd.DataFrame:
    """All measurements of the profile under other arithmetic, made in a copy of the study."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in ("fdm", "profiles"):
            shutil.copytree(root() / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "dvc.*"))
        for name in ("params.yaml", "dvc.yaml", "results/accepted.csv"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if (root() / name).exists():
                shutil.copy(root() / name, copy / name)
        other = os.environ | env | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": str(profile.threads)}
        done = subprocess.run([sys.executable, "-c", WORK, profile.params_file], cwd=copy, env=other)
        if done.returncode:
            raise FdmError(f"The training with {env} failed; see above.")
        parts = [copy / profile.here.relative_to(root()) / "runs" / cell for cell in profile.cells]
        return pd.concat([measurements.read(part / "measurements.csv") for part in parts], ignore_index=True)


def deviations(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Standard deviation over arithmetics of each run's metric, pooled over its measurements; see `agreement.rounding`.

    `tables` are measurements by the name of the arithmetic. Columns: run, metric, deviation, chaotic, arithmetics.
    """
    keys = [*agreement.KEY]
    values = pd.concat([table.set_index(keys)["value"].rename(name) for name, table in tables.items()], axis=1)
    share = values.index.get_level_values("metric").isin(["precision", "recall"])
    size = np.where(share, 1.0, values.mean(axis=1).abs())
    variance = (values.div(size, axis=0)).var(axis=1, ddof=1)
    pooled = np.sqrt(variance.groupby(level=["run", "metric"], sort=False).mean()).rename("deviation").reset_index()
    distance = measurements.frechet(next(iter(tables.values())))
    moved = pooled[pooled["metric"] == distance].set_index("run")["deviation"] > agreement.CHAOTIC
    return pooled.assign(chaotic=pooled["run"].map(moved), arithmetics=len(tables))


def measure(profile: Profile) -> pd.DataFrame:
    """Train and score the profile under each of `VARIANTS`, compare with the record, and write rounding.csv.

    What was measured under one variant is kept in build/<profile>/rounding, so that a killed measurement goes on there.
    """
    if not profile.trained:
        raise FdmError(f"{profile.profile} trains nothing: its networks are published ones.")
    tables = {"on record": measurements.table(profile)}
    for name, env in VARIANTS.items():
        path = profile.build / "rounding" / f"{name}.csv"
        if not path.is_file() or set(measurements.read(path)["experiment"]) != set(tables["on record"]["experiment"]):
            print(f"{name}:", file=sys.stderr)
            write_text(path, _run(profile, env).to_csv(index=False))
        tables[name] = measurements.read(path)
    table = agreement.read_back(deviations(tables))
    write_text(profile.results / "rounding.csv", table.to_csv(index=False))
    return table
