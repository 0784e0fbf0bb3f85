"""The commands, one row of `COMMANDS` each; modules are imported on use."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from sgd_sai.cli import ctrl_c, streams
from sgd_sai.cli.printable import printable
from sgd_sai.cli.secrets import without_secrets

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


class _Said(Exception):
    """All is done: --help or --version has been printed."""


class _Parser(argparse.ArgumentParser):
    """A parser that leaves the end of the process to `main`, and whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Said


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0; 1 if a run failed, or what was to be printed could not be; 2 for bad input; 130 after Ctrl-C. A reader
    of the output that goes, as `head` does, changes nothing.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with streams.patient() as failure:
        try:
            with ctrl_c.heeded():
                code = _dispatch(arguments)
        except _Said:
            code = 0
        except CommandError as error:
            return _failed(str(error), 2)
        except OSError as error:
            if error.filename is None:
                raise  # of no file that was named
            return _failed(f"cannot use {error.filename}: {error.strerror}", 2)
        except KeyboardInterrupt:
            return _failed("interrupted", ctrl_c.EXIT_CODE)
        unwritten = failure()
        return code if unwritten is None else _failed(f"cannot write the output: {unwritten.strerror}", 1)


def _failed(why: str, code: int) -> int:
    """Say why in one line, without the passwords of addresses in it and what could steer a terminal."""
    print(f"sgd-sai: {printable(without_secrets(why))}", file=sys.stderr)
    return code


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
