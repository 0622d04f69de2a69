"""Notebooks as stages of the pipeline: execute, normalise so that equal results are equal bytes, and publish.

A stage depends on a notebook's code alone. Its executed copy is published with the prose as it stands, so that
better words retrain nothing.
"""

import base64
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode

from fdm.files import FdmError, digest, replace, root
from fdm.study import report
from fdm.study.agreement import pictures_agree, same
from fdm.study.profiles import Profile
from fdm.study.provenance import record


class _PrivateKernel(AsyncKernelManager):
    """A kernel that talks over sockets in the file system, which other users of the machine cannot read."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**(kwargs | {"transport": "ipc"}))


def read(path: Path) -> NotebookNode:
    """Read a notebook; raises FdmError when it is missing or is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise FdmError(f"The notebook {path} cannot be read ({str(error).splitlines()[0]}).") from error


def code(notebook: NotebookNode) -> str:
    """The code cells alone, in the percent format."""
    return "\n\n".join(f"# %%\n{cell.source}" for cell in notebook.cells if cell.cell_type == "code") + "\n"


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop what differs between two equal executions: times, random ids, stderr, chunks of stdout."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
    )
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        cell.id = f"{number:02d}-{digest(cell.source)[:8]}"
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            output.get("metadata", {}).clear()
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
                continue
            outputs.append(output)
        cell.outputs = outputs
    return notebook


def weave(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The executed notebook with the prose of its source; raises ValueError when their code differs."""
    injected = [cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    done = [cell for cell in executed.cells if cell.cell_type == "code" and cell not in injected]
    woven = []
    for cell in source.cells:
        if cell.cell_type != "code":
            woven.append(cell)
            continue
        if not done or done[0].source != cell.source:
            raise ValueError("the code of the source is not the code that was executed")
        woven.append(done.pop(0))
        if "parameters" in cell.metadata.get("tags", []):
            woven += injected
    if done:
        raise ValueError("the code of the source is not the code that was executed")
    return normalise(nbformat.v4.new_notebook(cells=woven))


def _outputs_agree(old: NotebookNode, new: NotebookNode) -> bool:
    """Whether two executed cells have the same source, and show the same but for rounding."""
    if old.source != new.source or old.execution_count != new.execution_count:
        return False
    if len(old.outputs) != len(new.outputs):
        return False
    return all(_shown_alike(a, b) for a, b in zip(old.outputs, new.outputs, strict=True))


def _shown_alike(a: NotebookNode, b: NotebookNode) -> bool:
    pictures = [out.get("data", {}).get("image/png") for out in (a, b)]
    words = [json.dumps({**out, "data": {**out.get("data", {}), "image/png": ""}}, sort_keys=True) for out in (a, b)]
    if not same(*words) or bool(pictures[0]) != bool(pictures[1]):
        return False
    return pictures[0] == pictures[1] or pictures_agree(*(base64.b64decode(str(picture)) for picture in pictures))


def settle(executed: NotebookNode, record: Path) -> NotebookNode:
    """The code cells of an executed notebook: those on record where all of them agree but for rounding."""
    cells = [cell for cell in normalise(executed).cells if cell.cell_type == "code"]
    if record.is_file():
        old = [cell for cell in normalise(read(record)).cells if cell.cell_type == "code"]
        if len(old) == len(cells) and all(map(_outputs_agree, old, cells)):
            cells = old
    return normalise(nbformat.v4.new_notebook(cells=cells))


def execute(name: str, parameters: dict[str, Any], profile: Profile) -> None:
    """Execute notebooks/<name>.ipynb with `parameters`; its code cells go to build/<profile>/notebooks/<name>.ipynb.

    Where they agree with results/<profile>/notebooks but for rounding, the cells on record are written there instead.
    The whole notebook as it was executed here goes to build/<profile>/here/notebooks, and its stderr, with progress
    bars, to the terminal. Provenance is written when the results are other than those it tells of.
    Raises FdmError with the sentence of a failed cell.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = root() / "notebooks" / f"{name}.ipynb"
    read(source)
    unknown = parameters.keys() - papermill.inspect_notebook(str(source)).keys()
    if unknown:
        raise FdmError(f"{source.name} has no parameter named {', '.join(sorted(unknown))}.")
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(root()), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": str(profile.threads),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # bars are lines of text here, as they should be
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else each of several processes doubts an option that it needs
    }
    failed = root() / "work" / "failed" / f"{profile.profile}-{name}.ipynb"
    failed.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    try:
        executed = papermill.execute_notebook(
            str(source), str(failed), parameters=parameters, cwd=str(root()), kernel_name="python3",
            progress_bar=False, log_output=False, stderr_file=sys.stderr, kernel_manager_class=_PrivateKernel,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # it reports its own shutdown as an error
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "FdmError":
            raise FdmError(str(error.evalue)) from None
        raise FdmError(f"{name} failed with {error.ename}: {error.evalue} (see {failed}).") from None
    failed.unlink()
    executed = normalise(executed)
    replace(profile.here / "notebooks" / f"{name}.ipynb", functools.partial(nbformat.write, executed))
    settled = settle(executed, profile.results / "notebooks" / f"{name}.ipynb")
    replace(profile.build / "notebooks" / f"{name}.ipynb", functools.partial(nbformat.write, settled))
    content = digest([[cell.source, cell.outputs] for cell in settled.cells])
    record(profile.results / "provenance" / f"{name}.json", content, started, notebook=name, parameters=parameters)


def source(name: str, profile: Profile) -> NotebookNode:
    """The source of a notebook with the {{names}} of its prose replaced by a profile's values."""
    notebook = read(root() / "notebooks" / f"{name}.ipynb")
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown" and "{{" in cell.source]
    values = report.numbers(profile) if prose else {}
    for cell in prose:
        cell.source = report.fill(cell.source, profile, values, f"notebooks/{name}.ipynb")
    return notebook


def publish(profile: Profile, executed: list[Path]) -> None:
    """Write executed notebooks to results/<profile>/notebooks with the prose of their sources, numbers filled in."""
    folder = profile.results / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for path in executed:
        try:
            woven = weave(source(path.stem, profile), read(path))
        except ValueError as error:
            raise FdmError(f"{path.name} cannot be published: {error}; run dvc repro.") from error
        replace(folder / path.name, functools.partial(nbformat.write, woven))
    wanted = {path.name for path in executed}
    for stale in folder.glob("*.ipynb"):
        if stale.name not in wanted:
            stale.unlink()
