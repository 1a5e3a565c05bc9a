"""The command line: one verb, one function. Verbs import what they need, so `--help` is instant."""

import os
import sys
from collections.abc import Callable

from cofield.cli.data import check_data, doctor, export, segments
from cofield.cli.runs import evaluate, export_model, predict, render, report
from cofield.cli.training import demo, finetune, pretrain, recipes, sweep

VERBS: dict[str, Callable[[list[str]], int]] = {
    "doctor": doctor,
    "recipes": recipes,
    "pretrain": pretrain,
    "finetune": finetune,
    "check-data": check_data,
    "export": export,
    "render": render,
    "segments": segments,
    "evaluate": evaluate,
    "predict": predict,
    "export-model": export_model,
    "report": report,
    "sweep": sweep,
    "demo": demo,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; exit 0 when done, 1 when a check failed, 2 when the request was wrong, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    try:
        verb, *rest = arguments
        if verb not in VERBS:
            raise ValueError(f"no verb is called {verb!r}; there is {', '.join(VERBS)}")
        status = VERBS[verb](rest)
    except KeyboardInterrupt:
        print("cofield: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        status = 141  # whoever read our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, LookupError, OSError) as problem:
        if os.environ.get("COFIELD_TRACEBACK"):
            raise
        print(f"cofield: {_sentence(problem)}", file=sys.stderr)
        print("(COFIELD_TRACEBACK=1 shows where)", file=sys.stderr)
        status = 2
    sys.exit(status)


def _overview() -> str:
    width = max(len(verb) for verb in VERBS)
    lines = [f"  {verb:<{width}}  {(run.__doc__ or '').splitlines()[0]}" for verb, run in VERBS.items()]
    return "\n".join(
        ["usage: cofield VERB ...", "", "Teach 3-D perception from raw driving logs.", "", *lines, "",
         "cofield VERB --help says more."]
    )  # fmt: skip


def _sentence(problem: Exception) -> str:
    """What an error says; a KeyError would otherwise show only its quoted key."""
    return str(problem.args[0]) if isinstance(problem, KeyError) and problem.args else str(problem)
