"""Runs: one model, one optimizer, one seed each, which leave a record.

runner        one run, begun or resumed
training      its loop: steps, evaluations, measurements
checkpoint    its state on disk, from which it resumes bit for bit
board         its curves, for TensorBoard
prefetch      its batches, prepared ahead
interrupt     Ctrl-C between two of its steps
processes     several processes that share it, as torchrun starts them
run_pool      several runs, one after another or side by side, with a progress bar
"""
