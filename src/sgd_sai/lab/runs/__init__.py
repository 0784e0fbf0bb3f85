"""Runs: one model, one optimizer, one seed each, which leave a record.

runner        one run, begun or resumed
training      its loop: steps, evaluations, measurements
checkpoint    its state on disk, from which it resumes bit for bit
board         its curves, for TensorBoard
prefetch      its batches, prepared ahead
processes     several processes that share it, as torchrun starts them
workers       processes that carry out several runs, one each at a time
run_pool      several runs, one after another or side by side, with a progress bar
"""
