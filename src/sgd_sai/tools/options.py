"""The arguments that `sgd-sai gsnr` and `sgd-sai lr-find` both have."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from sgd_sai.cli import CommandError
from sgd_sai.lab import arguments
from sgd_sai.lab.tasks import TASKS


@dataclass(frozen=True)
class Shared:
    """The options that both commands have, checked."""

    seed: int
    clip: float | None


def add_shared(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the arguments that both commands take; `optional`: WORKLOAD may be missing."""
    parser.add_argument(
        "workload",
        nargs="?" if optional else None,
        metavar="WORKLOAD",
        help=f"{', '.join(TASKS)}, or module:factory, a callable of your own without arguments that returns "
        "(model, batches) or (model, batches, loss_fn)",
    )
    parser.add_argument("--seed", default="0", metavar="N", help="of the weights and batches (default: 0)")
    parser.add_argument(
        "--clip", metavar="X", help="largest gradient norm (default: the task's own; none for a factory)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures to FILE")


def checked(args: argparse.Namespace) -> Shared:
    """Return the shared options; CommandError names one that is not allowed."""
    if args.html is not None and (args.html.is_dir() or not args.html.parent.is_dir()):
        raise CommandError(f"--html: given {args.html}; allowed: a file in a folder that exists")
    return Shared(
        seed=arguments.integer("--seed", args.seed, least=0),
        clip=None if args.clip is None else arguments.learning_rate("--clip", args.clip),
    )
