"""What the explorer draws with in a browser: the default profile's networks as ONNX, and the runtime that reads them.

The runtime is onnxruntime-web, which npm installs by docs/site/package-lock.json.
"""

import itertools
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import explorer
import onnx
import torch
from torch import Tensor
from torch.nn import functional

import fdm
from fdm.model.denoiser import Denoiser
from fdm.study import profiles
from fdm.tasks import generation

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def _pool(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same pooling without `divisor_override`, which the exporter leaves out without a word."""

    def pooled(x: Tensor, size: int, stride: int | None = None, divisor_override: int | None = None) -> Tensor:
        return pool(x, size, stride) * (1 if divisor_override is None else size**2 / divisor_override)

    return pooled


def export(run: str, path: Path) -> None:
    """Write a run's D(x; sigma) as ONNX: x (N, C, H, W), sigma () and one-hot labels (N, classes), float32.

    N is the number of the explorer's latents.
    """
    denoiser = fdm.load(run)
    assert isinstance(denoiser, Denoiser)
    latents, labels = generation.draw_latents(explorer.SEEDS, denoiser.shape, denoiser.classes)
    given = (latents, torch.tensor(1.0), torch.eye(denoiser.classes)[labels])
    with warnings.catch_warnings(), patch.object(functional, "avg_pool2d", _pool(functional.avg_pool2d)):
        warnings.simplefilter("ignore")  # of the exporter's own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            denoiser, given, dynamo=True, input_names=["x", "sigma", "labels"], output_names=["D"], verbose=False
        )
    assert program is not None
    model, graph = program.model_proto, program.model_proto.graph
    for each in itertools.chain([model, graph], graph.node, graph.input, graph.output, graph.value_info):
        each.ClearField("metadata_props")  # where each line of the source stood: half of the file
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def runtime(folder: Path) -> None:
    """Install the runtime, and copy to a folder what a page loads of it."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(Path(__file__).with_name(name), place)
        subprocess.run(["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUNTIME:
            shutil.copy(Path(place) / "node_modules" / "onnxruntime-web" / "dist" / name, folder / name)


def main(folder: Path) -> None:
    """Write both to a folder; without npm neither, and say so."""
    if shutil.which("npm") is None:
        print("npm is not here: the explorer is built without what draws in the browser.", file=sys.stderr)
        return
    runtime(folder)
    profile = profiles.find("digits")
    for cell in profile.cells:
        run = f"{cell}-{min(profile.seeds)}"
        export(run, folder / f"{run}.onnx")
    (folder / "ready").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
