"""`wam VERB`: one verb a module of this package, nothing else."""

import argparse
import importlib
import logging
import os
import sys

VERBS = {
    "quickstart": "from nothing to a robot that acts: demonstrations, training, evaluation, report",
    "demos": "write the simulator's expert demonstrations as RLDS",
    "index": "scan RLDS folders so that any frame can be read",
    "skills": "cut demonstrations into skills, and say how many words and contacts agree on",
    "tokenize": "encode the training data once, for trainings to read",
    "train": "train tokenizer and world action model on RLDS or LeRobot data",
    "posttrain": "improve a policy by what a world model imagines",
    "evaluate": "closed-loop success of a checkpoint in batched MJX",
    "serve": "a policy behind a websocket, for robots and programs elsewhere",
    "imagine": "a video of any length, skill by skill, beside the simulator",
    "export": "a run as safetensors with its configuration and a model card, or back",
    "study": "test a claim: arms x seeds on the same data, steps and episodes",
    "zoo": "the named systems side by side, or one of them in full",
    "plan": "compile a train step ahead of time and say what each chip pays",
    "bench": "measure what systems cost and whether they learn",
    "assets": "which pretrained weights are here, and the one command that gets each",
    "doctor": "what this machine has and what is missing",
}
_TAKES_CONFIG = (
    "quickstart",
    "demos",
    "skills",
    "tokenize",
    "train",
    "posttrain",
    "evaluate",
    "serve",
    "imagine",
    "bench",
    "study",
)
_MISTAKES = (ValueError, FileNotFoundError, FileExistsError, KeyError, RuntimeError)


# XLA's CPU backend allocates its temporaries anew at every call, and the kernel clears them page by page. In huge pages
# a train step of `wam bench train --spec fast_wam --batch 64` takes 503 ms instead of 771 (two cores, jax 0.10.2; set
# GLIBC_TUNABLES to nothing to compare). Read as glibc starts.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main(argv: list[str] | None = None) -> int:
    """Runs a verb. A mistake of the user's is one line and exit code 2; ``--debug`` shows where it came from."""
    if argv is None and sys.platform == "linux" and not _HUGE_PAGES.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **_HUGE_PAGES})
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="wam",
        description="World Action Models in JAX.",
        epilog="Fields of a config are set with --config.FIELD=VALUE, e.g. --config.train.optimizer.steps=100.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = next((word for word in argv if word in VERBS), None)
    for verb, text in VERBS.items():
        child = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if verb == wanted:  # the others' modules stay unloaded: `wam --help` answers at once
            _module(verb).add_arguments(child)
    args, overrides = parser.parse_known_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of files that it does not need
    try:
        if args.verb in _TAKES_CONFIG:
            _module(args.verb).run(args, overrides)
        elif overrides:
            parser.error(f"unknown arguments: {' '.join(overrides)}")
        else:
            _module(args.verb).run(args)
    except _MISTAKES as error:
        if args.debug:
            raise
        print(f"wam {args.verb}: {_text(error)}", file=sys.stderr)
        return 2
    return 0


def _module(verb: str):
    return importlib.import_module(f"launch.{verb}")


def _text(error: BaseException) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


if __name__ == "__main__":
    sys.exit(main())
