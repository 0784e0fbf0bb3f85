"""The command line: `sgd-sai COMMAND …`, one row of `COMMANDS` each; modules are imported on use."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

#: What `sgd-sai` knows: command → (module, what it does). A module has `add_arguments(parser)`, and
#: `run(args)`, which returns the exit code.
COMMANDS = {
    "compare": ("sgd_sai.lab.compare", "train real models with several optimizers and write a report"),
    "tune": ("sgd_sai.lab.tune", "find each optimizer's learning rate on a task, on one grid rule for all"),
    "sweep": ("sgd_sai.lab.sweep.command", "every learning rate with every weight decay, drawn as a surface"),
    "report": ("sgd_sai.lab.report.command", "rebuild a report from the records of runs"),
    "gsnr": ("sgd_sai.tools.gsnr.command", "g-SNR and updates of your own model, block by block"),
    "lr-find": ("sgd_sai.tools.lr_find.command", "find a learning rate: a range test, or from AdamW's"),
    "bench": (
        "sgd_sai.bench.command",
        "time one step of several optimizers next to the memory-bandwidth floor",
    ),
    "memory": ("sgd_sai.memory.command", "exact bytes of a model's training, before anything is allocated"),
}


class CommandError(Exception):
    """Bad input: shown as one line, exit code 2."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 2 for bad input; 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except CommandError as error:
        print(f"sgd-sai: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sgd-sai: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command is None:
        _overview().parse_args(arguments or ["--help"])
    if command not in COMMANDS:
        raise CommandError(f"unknown command {command!r}; there are {', '.join(COMMANDS)}")
    module_name, purpose = COMMANDS[command]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sgd_sai"):
            raise
        raise CommandError(
            f"{command} needs the package {error.name!r}: pip install 'sgd-sai[lab]'"
        ) from None
    parser = _Parser(prog=f"sgd-sai {command}", description=f"{purpose[0].upper()}{purpose[1:]}.")
    module.add_arguments(parser)
    arguments.remove(command)
    return int(module.run(parser.parse_args(arguments)) or 0)


def _overview() -> argparse.ArgumentParser:
    from sgd_sai import __version__

    parser = _Parser(
        prog="sgd-sai",
        description="SGD-SaI for PyTorch: what it does on real models, and what it costs.",
        epilog="\n".join(f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sgd-sai {__version__}")
    parser.add_argument("command", help="one of those below; `sgd-sai COMMAND --help` shows its options")
    return parser


if __name__ == "__main__":
    # Not this module's own `main`: commands raise the `CommandError` of sgd_sai.cli, and this is __main__.
    sys.exit(importlib.import_module("sgd_sai.cli").main())
