"""`scaledl <verb> ...`: the words of the command line, and what a person sees when something is wrong.

Nothing heavy is imported before it is known that it is needed: `--help` and `list` answer without torch.
"""

import argparse
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaledl.interpret.methods import METHODS

TRAIN_HELP = """\
scaledl train experiment=<family>/<name> [key=value ...]

After `train` comes Hydra's override grammar: group=choice takes a file of conf/<group>/, key=value sets a value.
  scaledl train experiment=llm/gpt_shakespeare data.path=input.txt trainer.max_steps=2000
  scaledl train experiment=mlp/circles optimizer.lr=0.01 seed=1
-m is a sweep: every combination of several values, or with sweep=choice a search (docs/sweeps.md).
  scaledl train -m experiment=mlp/circles optimizer.lr=0.01,0.02 seed=0,1
  scaledl train -m sweep=tpe_asha experiment=mlp/digits hydra.sweeper.n_trials=40
"""


LAUNCH_HELP = """\
scaledl launch local --ranks 2 [--dry-run] -- train experiment=<family>/<name> [key=value ...]
       (also resume, find-lr, find-batch)
       scaledl launch slurm --nodes 4 --gpus-per-node 8 --time 24:00:00 [--dry-run] [sbatch's options] -- train ...

Prints what a person would have typed, torchrun or sbatch, and runs it once the config is right. For Slurm the config is
kept with the code in the run directory: a job runs what was submitted. `train -m` is a sweep.
"""


def main() -> None:
    warnings.formatwarning = lambda message, *where, **more: f"scaledl: {message}\n"  # type: ignore[assignment]
    words = sys.argv[1:]
    debug = "--debug" in words
    code = run([word for word in words if word != "--debug"], debug)
    if (path := os.environ.get("SCALEDL_EXIT_CODE_FILE")) and os.environ.get("RANK", "0") == "0":
        Path(path).write_text(f"{code}\n")  # torchrun makes 1 of every exit code
    # Ranks that have saved and stopped on purpose: a torchrun that would start them again need not, and none of them
    # should be ended by the others' codes while whoever reads the file learns what happened.
    told = path or int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    sys.exit(0 if code > 128 and told and "RANK" in os.environ else code)


def run(words: list[str], debug: bool) -> int:
    """Exit code of a command: 0 done, 1 failed, 2 wrong words or config, 128 + n stopped by signal n after saving."""
    parser = _parser()
    launched: list[str] = []
    if words[:1] == ["launch"] and "--" in words:
        words, launched = words[: words.index("--")], words[words.index("--") + 1 :]
    arguments, more = parser.parse_known_args(words)
    if arguments.verb == "launch":
        starts = ("train", "resume", *(("find-lr", "find-batch") if arguments.where == "local" else ()))
        if not launched or launched[0] not in starts or (arguments.where == "local" and more):
            parser.error(f"see `scaledl launch --help`{': unknown ' + ' '.join(more) if launched else ''}")
        arguments.command, arguments.sbatch, more = launched, more, []
    if more and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # settings that stand behind an option
        arguments.overrides += more
    try:
        return _VERBS[arguments.verb](arguments)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, KeyboardInterrupt) or isinstance(
            error.__context__, KeyboardInterrupt
        ):  # Lightning's doing
            return _report("stopped by Ctrl-C; what was saved before is whole", 130, debug)
        return error.code if isinstance(error.code, int) and error.code else 1
    except BrokenPipeError:
        return 0
    except (ValueError, OSError, ImportError) as error:
        from_config = type(error).__name__ == "ConfigError"
        return _report(str(error), 2 if from_config else 1, debug)
    except Exception as error:
        if type(error).__name__ == "Preempted":
            number = error.signal_number  # type: ignore[attr-defined]
            saved = "the run has saved; the same command with its run_id, or `scaledl resume RUN_DIRECTORY`, goes on"
            return _report(f"stopped by {signal.Signals(number).name}: {saved}", 128 + number, debug)
        return _report(f"{type(error).__name__}: {error}\n(unexpected: --debug shows where)", 1, debug)


def _report(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"scaledl: {message}", file=sys.stderr)
    elif code == 1:  # what a rank met alone; a wrong config and a signal are the same on all
        print(f"scaledl: rank {rank}: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scaledl",
        description="Train any of the main deep-learning architecture families with one command.",
        epilog="--debug, anywhere: the full traceback of an error. `scaledl list` shows what can be trained.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="a package of yours that configs may name"
    )

    composed = argparse.ArgumentParser(add_help=False, parents=[shared])
    composed.add_argument(
        "--config-dir", "-cd", action="append", default=[], metavar="FOLDER", help="a conf/ folder of yours"
    )

    _add_training(verbs, composed)
    _add_use_of_a_run(verbs, shared)
    _add_pages(verbs, composed)
    _add_launch(verbs)
    listing = verbs.add_parser(
        "list", parents=[composed], help="every experiment: what it needs, how long it takes, what comes out"
    )
    listing.add_argument("family", nargs="?")
    return parser


def _add_training(verbs: Any, composed: argparse.ArgumentParser) -> None:
    swept = argparse.ArgumentParser(add_help=False)
    swept.add_argument("-m", "--multirun", action="store_true", help="a sweep: several values, as in seed=0,1,2")
    swept.add_argument("--trial", type=_number(int, 0), metavar="N", help="of a sweep, only this one, here")

    train = verbs.add_parser(
        "train",
        parents=[composed, swept],
        help="train an experiment",
        usage=TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("overrides", nargs="*")
    resume = verbs.add_parser("resume", parents=[composed], help="go on with a run from its last checkpoint")
    resume.add_argument("run_directory", type=Path)
    resume.add_argument("overrides", nargs="*", help="settings to change, such as trainer.max_steps=4000")
    show = verbs.add_parser("show", parents=[composed, swept], help="print the composed config, and train nothing")
    show.add_argument("overrides", nargs="*")
    prepare = verbs.add_parser(
        "prepare", parents=[composed], help="bring an experiment's data onto this machine, and no more"
    )
    prepare.add_argument("overrides", nargs="*")
    imported = verbs.add_parser(
        "import",
        parents=[composed],
        help="make a run directory of a Hugging Face checkpoint (GPT-2, Llama, Qwen3, ...)",
    )
    imported.add_argument("source", metavar="FOLDER_OR_NAME", help="a folder, or a name on the Hugging Face Hub")
    imported.add_argument("--to", type=Path, metavar="RUN", help="default: runs/imported/<its name>")
    imported.add_argument("overrides", nargs="*", help="settings for a `scaledl resume` of it")
    plan = verbs.add_parser("plan", parents=[composed], help="memory, time and cost on devices that are not here")
    plan.add_argument("overrides", nargs="*")
    plan.add_argument("--gpus", type=_number(int, 1), required=True, metavar="N", help="how many devices")
    plan.add_argument("--gpu", required=True, metavar="NAME", help="h100, a100, l4, ...; cpu: memory only")
    plan.add_argument("--gpus-per-node", type=_number(int, 1), metavar="N", help="default: what is usual for them")
    plan.add_argument("--inter-node", type=_number(float, 0), metavar="GB/s", help="a device's share of the network")
    plan.add_argument("--tokens", type=_count, metavar="N", help="to train on: 300B (default: the config's steps)")
    plan.add_argument("--price", type=_number(float, 0), metavar="P", help="of a device and hour")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the plan there")
    find_lr = verbs.add_parser(
        "find-lr", parents=[composed], help="train a little with growing learning rates, and suggest one"
    )
    find_lr.add_argument("overrides", nargs="*")
    find_lr.add_argument("--min-lr", type=_number(float, 0), default=1e-6, metavar="LR", help="default: 1e-6")
    find_lr.add_argument("--max-lr", type=_number(float, 0), default=1.0, metavar="LR", help="default: 1")
    find_lr.add_argument("--steps", type=_number(int, 10), default=100, metavar="N", help="default: 100")
    find_batch = verbs.add_parser(
        "find-batch", parents=[composed], help="which data.micro_batch_size fits into memory, and which is fastest"
    )
    find_batch.add_argument("overrides", nargs="*")
    find_batch.add_argument("--steps", type=_number(int, 1), default=5, metavar="N", help="timed ones of each size")
    find_batch.add_argument("--measure", type=int, action="append", help=argparse.SUPPRESS)  # for the process above
    find_batch.add_argument("--result", type=Path, help=argparse.SUPPRESS)


def _add_use_of_a_run(verbs: Any, shared: argparse.ArgumentParser) -> None:
    of_run = argparse.ArgumentParser(add_help=False, parents=[shared])
    of_run.add_argument("run_directory", type=Path)
    of_run.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, last or a step (default: best)")

    evaluate = verbs.add_parser("evaluate", parents=[of_run], help="metrics of a trained run")
    evaluate.add_argument("text", type=Path, nargs="?", help="a text file, for a language model")
    evaluate.add_argument(
        "--multiple-choice", metavar="FILE", help=".jsonl of question, choices and answer; or the word documentation"
    )
    evaluate.add_argument("--harness", metavar="TASKS", help="of EleutherAI's lm-eval, with commas between")
    evaluate.add_argument("--include-path", type=Path, metavar="FOLDER", help="harness: with tasks of your own")
    evaluate.add_argument("--limit", type=_number(int, 1), metavar="N", help="harness: questions of a task, at most")
    evaluate.add_argument("--batch-size", type=_number(int, 1), metavar="N", help="of these two (default: 16)")
    generate = verbs.add_parser("generate", parents=[of_run], help="let a language model write")
    generate.add_argument("--prompt", help="what the text begins with (default: a new line)")
    generate.add_argument("--max-new-tokens", type=_number(int, 1), default=500)
    generate.add_argument("--temperature", type=_number(float, 0), default=0.8, help="0: always the likeliest token")
    generate.add_argument("--top-k", type=_number(int, 1), help="choose among the k likeliest tokens")
    generate.add_argument("--top-p", type=_number(float, 1e-6, 1), default=1.0, help="among the likeliest of that mass")
    generate.add_argument("--seed", type=_number(int, 0), default=0)
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text")
    generate.add_argument("--chat", action="store_true", help="the prompt is a message, written as the run learnt it")
    export = verbs.add_parser(
        "export", parents=[of_run], help="a trained model for transformers, or as one torch program"
    )
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    export.add_argument("--format", choices=["hf", "torch_export"], default="hf", help="default: hf (safetensors)")
    export.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights (default: 5GB)")
    export.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's own")
    merge = verbs.add_parser("merge", parents=[of_run], help="a run's weights with its adapters (lora) merged in")
    merge.add_argument("--to", type=Path, required=True, metavar="DIRECTORY", help="the run directory to make")
    explain = verbs.add_parser("explain", parents=[of_run], help="what a classifier or language model looks at: a page")
    explain.add_argument("--split", choices=["train", "val", "test"], help="whose samples (default: test, else val)")
    explain.add_argument("--samples", type=_number(int, 1), default=8, metavar="N", help="how many (default: 8)")
    explain.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)} (default: what fits)"
    )
    explain.add_argument("--prompt", help="of a language model: a text in the place of samples")
    explain.add_argument("--output", type=Path, metavar="FILE", help="default: explain.html in the run directory")
    explain.add_argument("--seed", type=_number(int, 0), default=0)


def _add_pages(verbs: Any, composed: argparse.ArgumentParser) -> None:
    report = verbs.add_parser("report", help="curves, settings and pictures of runs, or a sweep, as one page of HTML")
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, a folder of runs, or a sweep"
    )
    report.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in what holds the runs")
    report.add_argument(
        "--config-dir", "-cd", action="append", default=[], metavar="FOLDER", help="a conf/ folder with your dashboards"
    )
    dashboard = verbs.add_parser(
        "dashboard", parents=[composed], help="the curves of a family as a Weights & Biases workspace"
    )
    dashboard.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    dashboard.add_argument("--push", action="store_true", help="make it a saved view in your account")
    dashboard.add_argument("--output", type=Path, metavar="FILE", help="write what would be pushed, as JSON")
    dashboard.add_argument("--project", default="scaledl")
    dashboard.add_argument("--entity", help="a team; default: the account's own")


def _add_launch(verbs: Any) -> None:
    launch = verbs.add_parser(
        "launch",
        usage=LAUNCH_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        help="start a training on several ranks: on this machine, or through Slurm",
    )
    launch.add_argument("where", choices=["local", "slurm"])
    launch.add_argument("--ranks", type=_number(int, 1), default=2, help="local: processes (default: 2)")
    launch.add_argument("--nodes", type=_number(int, 1), default=1)
    launch.add_argument("--gpus-per-node", metavar="[TYPE:]N")
    launch.add_argument("--ranks-per-node", type=_number(int, 1), help="default: one for each GPU, or one")
    launch.add_argument("--dry-run", action="store_true", help="check the config and show what would be run")


def _number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    def read(word: str) -> float:
        value = kind(word)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{word} does not lie between {low:g} and {high:g}")
        return value

    read.__name__ = "number"
    return read


def _count(word: str) -> float:
    """300B, 1.5T, 2e9"""
    value = float(word.rstrip("KMBT")) * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(word[-1:], 1)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is no number of tokens")
    return value


def _train(arguments: argparse.Namespace) -> int:
    folders, words = _folders(arguments), arguments.overrides
    if arguments.multirun and arguments.trial is None:
        if _is_search(arguments):
            from scaledl.sweep.start import search

            return search(words, folders, _allowed(arguments))
        from scaledl.sweep.local import sweep

        return sweep(words, folders, _allowed(arguments))
    if arguments.multirun:
        from scaledl.sweep.grid import trials

        words = trials(words, folders, _allowed(arguments), only=arguments.trial)[0].words
    from scaledl.train import train

    train(words, folders, _allowed(arguments))
    return 0


def _is_search(arguments: argparse.Namespace) -> bool:
    return any(word.startswith("sweep=") for word in arguments.overrides)


def _resume(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    from scaledl.train import train

    train(arguments.overrides, folders, _allowed(arguments), resume=arguments.run_directory)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    from omegaconf import OmegaConf

    from scaledl.train import composed

    if arguments.multirun and _is_search(arguments):
        from scaledl.sweep.start import settings_of

        print(settings_of(arguments.overrides, folders, _allowed(arguments)), end="")
        return 0
    if arguments.multirun:
        from scaledl.sweep.grid import trials

        every = trials(arguments.overrides, folders, _allowed(arguments), only=arguments.trial)
        if arguments.trial is None:
            print("\n".join(f"{trial.run_dir}  {' '.join(trial.own)}" for trial in every))
        else:
            print(OmegaConf.to_yaml(every[0].config), end="")
        return 0
    print(OmegaConf.to_yaml(composed(arguments.overrides, folders, _allowed(arguments))), end="")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    from scaledl import build
    from scaledl.train import composed

    config = composed(arguments.overrides, folders, _allowed(arguments))
    data = build.data(config)
    made = f"; made at {speed}" if (speed := data.speed()) else ""
    splits = ", ".join(f"{len(split):,} {name} samples" for name, split in data.splits())
    print(f"{data.describe()}: {splits}{made}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    from scaledl.plan import Cluster, plan

    cluster = Cluster.of(arguments.gpus, arguments.gpu, arguments.gpus_per_node, arguments.inter_node, arguments.price)
    plan(arguments.overrides, folders, _allowed(arguments), cluster, arguments.tokens, arguments.json)
    return 0


def _find_lr(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    from scaledl.tune.find_lr import find_lr

    bounds = arguments.min_lr, arguments.max_lr
    find_lr(arguments.overrides, folders, _allowed(arguments), *bounds, arguments.steps)
    return 0


def _find_batch(arguments: argparse.Namespace) -> int:
    folders, words, allowed = _folders(arguments), arguments.overrides, _allowed(arguments)
    if arguments.measure is not None:
        from scaledl.tune.measure import measure

        measure(words, folders, allowed, arguments.measure, arguments.steps, arguments.result)
        return 0
    from scaledl.tune.find_batch import find_batch

    find_batch(words, folders, allowed, arguments.steps)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    run_dir, which, allowed = arguments.run_directory, arguments.checkpoint, _allowed(arguments)
    given = [
        ("TEXT", arguments.text),
        ("--multiple-choice", arguments.multiple_choice),
        ("--harness", arguments.harness),
    ]
    if len(several := [name for name, value in given if value]) > 1:
        raise ValueError(f"evaluate takes one of {' and '.join(several)} at a time")
    for name, value in (("--limit", arguments.limit), ("--include-path", arguments.include_path)):
        if value and not arguments.harness:
            raise ValueError(f"{name} is for --harness TASKS alone; leave it out")
    if arguments.batch_size and not (arguments.multiple_choice or arguments.harness):
        raise ValueError("--batch-size is for --multiple-choice and --harness; leave it out")
    batch_size = arguments.batch_size or 16
    if arguments.multiple_choice:
        from scaledl.multiple_choice import multiple_choice

        multiple_choice(run_dir, which, arguments.multiple_choice, batch_size, allowed)
        return 0
    if arguments.harness:
        from scaledl.harness import harness

        tasks, folder = arguments.harness.split(","), arguments.include_path
        harness(run_dir, which, tasks, folder, arguments.limit, batch_size, allowed)
        return 0
    from scaledl.evaluate import evaluate

    evaluate(run_dir, which, arguments.text, allowed)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from scaledl.generate import generate

    generate(
        arguments.run_directory,
        arguments.checkpoint,
        arguments.prompt,
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.top_k,
        arguments.top_p,
        arguments.seed,
        arguments.stop,
        _allowed(arguments),
        arguments.chat,
    )
    return 0


def _import(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    from scaledl.import_hf import import_

    import_(arguments.source, arguments.to, arguments.overrides, folders, _allowed(arguments))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from scaledl.export import export

    export(
        arguments.run_directory,
        arguments.to,
        arguments.checkpoint,
        arguments.format,
        arguments.max_shard_size,
        arguments.dtype,
        _allowed(arguments),
    )
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from scaledl.merge import merge

    print(merge(arguments.run_directory, arguments.checkpoint, arguments.to, _allowed(arguments)))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from scaledl.explain import explain

    explain(
        arguments.run_directory,
        arguments.checkpoint,
        arguments.split,
        arguments.samples,
        arguments.methods,
        arguments.prompt,
        arguments.output,
        arguments.seed,
        _allowed(arguments),
    )
    return 0


def _report_runs(arguments: argparse.Namespace) -> int:
    from scaledl.report import report

    print(report(arguments.runs, arguments.output, _folders(arguments)))
    return 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from scaledl import dashboard

    chosen, folders = arguments.families, _folders(arguments)
    if arguments.output:
        dashboard.write(chosen, folders, arguments.project, arguments.output)
    if arguments.push:
        print("\n".join(dashboard.push(chosen, folders, arguments.project, arguments.entity)))
    if not arguments.push and not arguments.output:
        dashboard.show(chosen, folders)
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    from scaledl import launch

    command, more = _parser().parse_known_args(arguments.command)
    command.overrides += more
    if arguments.where == "local":
        if command.verb == "train" and command.multirun:
            raise ValueError("scaledl train -m starts its trials itself; leave out `scaledl launch local`")
        if command.verb == "train":
            launch.check(command.overrides, _folders(command), _allowed(command), 1, arguments.ranks, multirun=False)
        return launch.local(arguments.ranks, arguments.command, arguments.dry_run)
    if command.verb != "train" or command.trial is not None or any(word.startswith("-") for word in more):
        raise ValueError(
            f"Slurm can be given a training, not: {' '.join(arguments.command)} (a run that stopped goes on with "
            "sbatch slurm/train.sbatch resume RUN_DIRECTORY)"
        )
    gpus = (arguments.gpus_per_node or "").rpartition(":")[2]
    if arguments.gpus_per_node and not (gpus.isdigit() and int(gpus)):
        raise ValueError(
            f"--gpus-per-node {arguments.gpus_per_node}: give a number, or a type and a number as in h100:8"
        )
    asked = [option for option in arguments.sbatch if option.startswith(("--gres", "--gpus", "-G"))]
    if asked and not arguments.ranks_per_node:
        raise ValueError(
            f"{asked[0]}: say how many GPUs a node has with --gpus-per-node, or --ranks-per-node beside it"
        )
    ranks = arguments.ranks_per_node or int(gpus or 1)
    options = [f"--gpus-per-node={arguments.gpus_per_node}"] * bool(gpus) + arguments.sbatch
    allowed = _allowed(command)
    configs = launch.check(command.overrides, _folders(command), allowed, arguments.nodes, ranks, command.multirun)
    return launch.slurm(configs, arguments.nodes, ranks, options, allowed, command.multirun, arguments.dry_run)


def _list(arguments: argparse.Namespace) -> int:
    from scaledl.experiments import print_experiments

    print_experiments(_folders(arguments), arguments.family)
    return 0


def _folders(arguments: argparse.Namespace) -> list[Path]:
    from scaledl.config.folders import config_folders

    return config_folders(arguments.config_dir)


def _allowed(arguments: argparse.Namespace) -> list[str]:
    """The packages that the person trusts; only then, and behind all others, can they lie in the current folder."""
    packages = [*arguments.allow, *os.environ.get("SCALEDL_ALLOW", "").split()]
    if packages and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return packages


_VERBS = {
    "train": _train,
    "resume": _resume,
    "show": _show,
    "prepare": _prepare,
    "import": _import,
    "plan": _plan,
    "find-lr": _find_lr,
    "find-batch": _find_batch,
    "evaluate": _evaluate,
    "generate": _generate,
    "export": _export,
    "merge": _merge,
    "explain": _explain,
    "report": _report_runs,
    "dashboard": _dashboard,
    "launch": _launch,
    "list": _list,
}
