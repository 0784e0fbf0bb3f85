"""`sgd-sai bench`: one step of several optimizers, side by side, next to the memory-bandwidth floor.

contenders   who is timed: one entry of a registry each
timing       interleaved rounds in one process; the floor, measured in the same rounds
command      the command line, the table, the record
"""

from sgd_sai.bench.command import add_arguments, run

__all__ = ["add_arguments", "run"]
