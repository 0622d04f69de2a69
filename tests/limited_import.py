"""Imports the files of a folder under limits on memory and time, each on its own; a process of its own, for tests.

Prints as JSON what each file came to: a sentence, or nothing where it was imported.
"""

import contextlib
import json
import sys
from pathlib import Path

from fdm.files import FdmError
from fdm.model import released

SECONDS = 60  # of a processor, for all files; what would be endless is not to stop the tests


def limit(size: int) -> None:
    """Let this process take no more than an import of a file of that size may."""
    import resource  # which Windows has not

    # Elsewhere the system does not hold this limit, or does not say how much is in use.
    with contextlib.suppress(FileNotFoundError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 3 * size + 300_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def outcome(path: Path, target: Path) -> str:
    """Import one file."""
    limit(path.stat().st_size)
    try:
        released.import_checkpoint(path, target)
    except FdmError as error:
        return str(error).replace(str(path), "FILE")
    return ""


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps({path.name: outcome(path, folder / "out" / "x.safetensors") for path in folder.glob("*.pkl")}))
