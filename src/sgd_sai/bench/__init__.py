"""`sgd-sai bench`: one step of several optimizers, side by side, next to the memory-bandwidth floor.

timing    interleaved rounds in one process; the floor, measured in the same rounds
command   the command line, the table, the record

The optimizers are those of `sgd_sai.peers` that have a `plain` builder.
"""
