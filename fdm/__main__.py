"""python -m fdm: the stages of the pipeline. People type `make repro` or `dvc repro`, which call these."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from fdm.files import FdmError, json_text, relative, root, write_text
from fdm.study import profiles
from fdm.study.profiles import Profile

NOTEBOOKS = ["01_kernel", "02_train", "03_evaluate", "04_tables", "05_evidence", "06_published_code", "07_systems",
             "08_restoration", "09_few_steps"]  # fmt: skip


def check(profile: Profile, args: argparse.Namespace) -> None:
    """Say that the parameters are valid, or what is wrong with them."""
    print(f"{profile.params_file} is valid: {len(profile.runs)} runs of {profile.profile} on {profile.dataset.name}.")


def pipeline(profile: Profile, args: argparse.Namespace) -> None:
    """Write the profile's dvc.yaml, where it is not current."""
    from fdm.repro import pipeline

    pipeline.write(profile)


def code(profile: Profile, args: argparse.Namespace) -> None:
    """Write what the other stages depend on: the source behind each of them."""
    from fdm.repro import pipeline

    pipeline.write_code(profile)


def prepare(profile: Profile, args: argparse.Namespace) -> None:
    """Make the profile's data set."""
    from fdm.data import sources

    dataset = sources.prepare(profile.dataset, profile.dataset_file)
    print(f"{dataset.name}: {tuple(dataset.images.shape)}, {dataset.classes} classes, sha256 {dataset.sha256[:12]}")


def reference(profile: Profile, args: argparse.Namespace) -> None:
    """Compute the features of the real images, and the floor of each metric."""
    from fdm.study import runs

    print(runs.reference(profile).drop(columns="experiment").to_string(index=False))


def train(profile: Profile, args: argparse.Namespace) -> None:
    """Train one run in the processes that `accelerate launch -m fdm train` started, for dvc repro to take."""
    from fdm.study import runs

    home = runs.train_launched(profile, args.run)
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.run} is trained; dvc repro takes it from {home}.", file=sys.stderr)


def cells(profile: Profile, args: argparse.Namespace) -> None:
    """Train and measure a profile cell by cell, each put on record as it ends; for long studies, before dvc repro."""
    from fdm.study import runs

    runs.complete(profile, args.scheduler)


def heads(profile: Profile, args: argparse.Namespace) -> None:
    """Train heads on the networks of a profile that say second and third moments, for GMS."""
    from fdm.study import runs

    print(f"heads on {len(runs.train_heads(profile))} networks of {profile.profile}")


def systems(profile: Profile, args: argparse.Namespace) -> None:
    """Compare ways to sample on the networks of a profile, as evaluation.systems says."""
    from fdm.study import runs

    found = runs.compare(profile)
    told = found[found["part"] == "systems"]
    print(f"{len(found)} measurements; {told['system'].nunique()} systems on {told['cell'].nunique()} cells")


def restoration(profile: Profile, args: argparse.Namespace) -> None:
    """Restore held-out images from measurements of them by each system, as evaluation.restoration says."""
    from fdm.study import runs
    from fdm.study.restoration import ESTIMATE

    found = runs.restore(profile)
    told = found[found["system"] != ESTIMATE]
    print(f"{len(found)} measurements; {told['system'].nunique()} systems on {told['cell'].nunique()} cells")


def toys(profile: Profile, args: argparse.Namespace) -> None:
    """Train generators of 25 Gaussians in the plane, where all is known, with each objective of a profile's."""
    from fdm.study import runs

    found = runs.draw_toys(profile)
    print(f"{found.groupby(['run', 'nfe']).ngroups} trainings of {found['cell'].nunique()} forms of the toy")


def fetch(profile: Profile, args: argparse.Namespace) -> None:
    """Fetch the published networks of a profile into downloads/ and import them."""
    from fdm.study import runs

    runs.fetch(profile)


def notebook(profile: Profile, args: argparse.Namespace) -> None:
    """Execute one notebook for a profile."""
    from fdm.repro import notebooks

    notebooks.execute(args.name, {"params_file": profile.params_file}, profile)


def publish(profile: Profile, args: argparse.Namespace) -> None:
    """Put the executed notebooks, with their present prose, under results/<profile>/notebooks."""
    from fdm.repro import notebooks, pipeline

    executed = [profile.build / "notebooks" / f"{name}.ipynb" for name in pipeline.books(profile)]
    notebooks.publish(profile, executed)


def sample(args: argparse.Namespace) -> None:
    """Draw samples from a trained network that is kept in git, or from a checkpoint, and write them as one picture."""
    import fdm

    denoiser = fdm.load(args.run, args.profile)
    options: dict[str, Any] = dict(map(_option, args.option))
    images = fdm.sample(denoiser, args.n, args.sampler, args.nfe, args.seed, **options)
    from fdm.tasks import pictures

    pictures.write_grid(images, args.out)
    print(f"{args.out}: {args.n} samples of {args.run}, {args.sampler}, {args.nfe} evaluations, seeds from {args.seed}")


def restore(args: argparse.Namespace) -> None:
    """Restore pictures: whole ones are measured first, others are measurements. Writes one sheet, a row a picture.

    Columns: the picture where it is whole, what was measured of it, the restoration, and how far it is off.
    """
    import fdm
    from fdm.tasks import own_pictures, pictures

    found = own_pictures.sheet(
        fdm.load(args.run, args.profile), args.pictures, args.task, args.noise, args.mask, args.seed, nfe=args.nfe,
        method=args.method, label=args.label, **dict(map(_option, args.option)),
    )  # fmt: skip
    pictures.write_grid(found, args.out, 4)
    print(
        f"{args.out}: {len(args.pictures)} pictures, {args.task}, {args.method} with {args.run}, {args.nfe} evaluations"
    )


def outcome(profile: Profile, args: argparse.Namespace) -> None:
    """Say what the profile came to: its headline, whether it is as committed, and what to do next."""
    from fdm.repro import outcome

    print(outcome.text(profile))


def readme(profile: Profile, args: argparse.Namespace) -> None:
    """Bring the numbers and the verdicts in README.md and benchmarks/README.md up to date with what is on record."""
    from fdm.study import show

    for path, text in show.documents(profile).items():
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            print(f"{relative(path)} is brought up to date.")


def _option(text: str) -> tuple[str, float | str]:
    """A sampler's option as it is typed: its value is a number where it can be read as one."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise FdmError(f"--option {text} is not understood; write a name and a value, such as eta=1.")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def new_profile(args: argparse.Namespace) -> None:
    """Write a profile for pictures of your own: it reads them all, and writes profiles/NAME/params.yaml."""
    from fdm.repro import new_profile

    profile, told = new_profile.write(args.name, args.images, args.gpu)
    print("\n".join(told))
    print(f"{profile.params_file} is written: {len(profile.runs)} training runs. Next:")
    print(f"  make plan PROFILE={args.name}     what it will cost here\n  make repro PROFILE={args.name}    run it")


def import_checkpoint(args: argparse.Namespace) -> None:
    """Turn a published network pickle into safetensors and JSON, running nothing from the file."""
    from fdm.model import checkpoints, released

    path = args.out / f"{args.file.stem}.safetensors"
    released.import_checkpoint(args.file, path)
    print(f"{path}: {checkpoints.describe(path)['denoiser']}")


def plan(profile: Profile, args: argparse.Namespace) -> None:
    """Say what the profile will cost in hours, memory and disk, and what is missing, without training."""
    from fdm.repro import plan

    found = plan.find(profile)
    print(json_text(found) if args.json else plan.report(profile, found))


def verify(profile: Profile, args: argparse.Namespace) -> None:
    """Compare each number reproduced here with the committed and the published one, and check the files."""
    from fdm.repro import verify

    found = verify.verify(profile, args.revision)
    text = verify.write(found, args.out or root() / "work" / "verify")
    print(json_text(found) if args.json else text)
    if not found["agrees"]:
        raise FdmError("Not all is as committed; see the lines above and the report.")


def explain(profile: Profile, args: argparse.Namespace) -> None:
    """Say what a cell of a table, or a figure, was made from; without a name, what can be asked."""
    from fdm.repro import trace

    print(trace.explain(profile, args.name))


def rounding(profile: Profile, args: argparse.Namespace) -> None:
    """Train and score the profile under other arithmetic, to see what rounding does: results/<profile>/rounding.csv."""
    from fdm.repro import rounding

    print(rounding.measure(profile).to_string(index=False))


def accept(profile: Profile, args: argparse.Namespace) -> None:
    """Prove that a change of the source moves no result, bit for bit, and record it, so that nothing is made again."""
    from fdm.repro import accept

    print(accept.report(args.revision))


def repro(profile: Profile, args: argparse.Namespace) -> None:
    """Run the profile's pipeline; on a terminal each stage is told with what is left, and about how long it takes."""
    from fdm.repro import progress

    progress.run(profile)


def completion(args: argparse.Namespace) -> None:
    """Write what lets a shell complete the commands and options of `fdm`; docs/running.md says how to use it."""
    import shtab

    args.parser.prog = "fdm"
    print(shtab.complete(args.parser, args.shell))


def doctor(args: argparse.Namespace) -> None:
    """Check the environment, devices, disk, data and DVC, and say what each profile can do here."""
    from fdm.repro import doctor

    found = doctor.find()
    print(json_text(found) if args.json else doctor.report(found))
    if not found["well"]:
        raise FdmError("Something is wrong for the default profile; see the lines above.")


def _complain(sentence: str) -> None:
    """Say on stderr what is wrong, in red on a terminal (https://no-color.org)."""
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print(f"\033[31mfdm: {sentence}\033[0m" if red else f"fdm: {sentence}", file=sys.stderr)


COMMANDS = [
    check, pipeline, code, prepare, reference, train, cells, heads, systems, restoration, toys, fetch, notebook,
    publish, repro, outcome, readme, plan, verify, explain, rounding, accept,
]  # fmt: skip


def _unfit(word: str) -> bool:
    """Whether argparse or the system stumble over an argument: NUL, bytes that are no text, -- as an option's value."""
    return "\0" in word or word != word.encode(errors="replace").decode() or word.endswith("=--")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 with one sentence on stderr when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m fdm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for function in COMMANDS:
        command = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        command.add_argument("--params", default="params.yaml", help="the profile's parameters (params.yaml)")
        command.set_defaults(function=function)
        if function is readme:
            command.set_defaults(params="profiles/exact/params.yaml")
        if function is notebook:
            command.add_argument("name", choices=NOTEBOOKS, help="which notebook")
        if function is train:
            command.add_argument("--run", required=True, help="which run of the profile, such as edm-fdm-0")
        if function is cells:
            command.add_argument("--scheduler", help="address of a Dask cluster, such as tcp://10.0.0.1:8786")
        if function in (plan, verify):
            command.add_argument("--json", action="store_true", help="print JSON and nothing else")
        if function is verify:
            command.add_argument("--revision", default="HEAD", help="of the committed results (HEAD)")
            command.add_argument("--out", type=Path, help="folder for the report (work/verify)")
        if function is accept:
            command.add_argument("--revision", default="HEAD", help="whose source made the results on record (HEAD)")
        if function is explain:
            command.add_argument("name", nargs="?", help="such as 'table1[vp,fdm,100%%]'")
    command = commands.add_parser("new-profile", help=new_profile.__doc__, description=new_profile.__doc__)
    command.add_argument("name", metavar="NAME", help="of the profile: a-z, 0-9 and hyphens")
    command.add_argument("--images", type=Path, required=True, metavar="PATH", help="the folder of the pictures")
    command.add_argument("--gpu", action="store_true", help="a larger network and budget, for one GPU")
    command.set_defaults(function=new_profile, params=None)
    about = import_checkpoint.__doc__
    command = commands.add_parser("import-checkpoint", help=about, description=about)
    command.add_argument("file", type=Path, help="edm-*.pkl or network-snapshot-*.pkl")
    command.add_argument("--out", type=Path, required=True, help="folder for <name>.safetensors and <name>.json")
    command.set_defaults(function=import_checkpoint, params=None)
    command = commands.add_parser("sample", help=sample.__doc__, description=sample.__doc__)
    command.add_argument("--run", default="edm-fdm-0", help="a run, or the path of a checkpoint (edm-fdm-0)")
    command.add_argument("--profile", default="digits", help="the profile of the run (digits)")
    command.add_argument("--sampler", default="heun", help="which sampler; an unknown one lists them (heun)")
    command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the sampler: eta=1")
    command.add_argument("--nfe", type=int, default=25, help="network evaluations a sample (25)")
    command.add_argument("--n", type=int, default=64, help="number of samples (64)")
    command.add_argument("--seed", type=int, default=0, help="of the first sample; the next has the next (0)")
    command.add_argument("--out", type=Path, required=True, help="the picture, such as grid.png")
    command.set_defaults(function=sample, params=None)
    command = commands.add_parser("restore", help=(restore.__doc__ or "").split("\n")[0], description=restore.__doc__)
    command.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="at the network's resolution")
    command.add_argument("--task", default="sr4", help="sr2, sr4, box, random or fourier (sr4)")
    command.add_argument("--run", default="edm-fdm-0", help="a run, or a checkpoint's path (edm-fdm-0)")
    command.add_argument("--profile", default="restoration", help="the profile of the run (restoration)")
    command.add_argument("--method", default="ccdf", help="ccdf, dps, diffpir or dossr (ccdf)")
    command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the method: sigma_0=5")
    command.add_argument("--mask", type=Path, help="a picture whose white pixels are known, in place of the task's own")
    command.add_argument("--noise", type=float, default=0.1, help="standard deviation of the measurement's (0.1)")
    command.add_argument("--nfe", type=int, default=20, help="network evaluations a picture (20)")
    command.add_argument("--seed", type=int, default=0, help="of the first picture; the next has the next (0)")
    command.add_argument("--label", type=int, help="the class, for a network that is told it")
    command.add_argument("--out", type=Path, default=Path("restored.png"), help="the sheet (restored.png)")
    command.set_defaults(function=restore, params=None)
    command = commands.add_parser("doctor", help=doctor.__doc__, description=doctor.__doc__)
    command.add_argument("--json", action="store_true", help="print JSON and nothing else")
    command.set_defaults(function=doctor, params=None)
    command = commands.add_parser("completion", help=completion.__doc__, description=completion.__doc__)
    command.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="which shell")
    command.set_defaults(function=completion, params=None, parser=parser)
    # In a log, a progress bar is a line now and then; tqdm reads this when it is first imported.
    os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "15")
    try:
        words = sys.argv[1:] if argv is None else argv
        if unfit := [word for word in words if _unfit(word)]:
            raise FdmError(f"The argument {unfit[0][:80]!a} is none that a command takes.")
        args = parser.parse_args(words)
        if args.params is not None:
            args.function(profiles.load(Path(args.params)), args)
        else:
            args.function(args)
        sys.stdout.flush()
    except FdmError as error:
        _complain(str(error))
        return 1
    except BrokenPipeError:  # such as explain | head: who reads has seen enough, also for what is still in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, one that is read-only, a folder in place of a file
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}; mend that and rerun, nothing finished is lost.")
        return 1
    except KeyboardInterrupt:
        _complain("interrupted; what was finished is kept, and dvc repro goes on from there.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
