"""The proof on a real GPU: `make gpu`, or `python -m benchmarks.gpu`.

__main__      the command: runs the stages one after the other, then prints all figures
worker        one stage in a process of its own; it writes the record, row by row
tests         the tests that need a GPU
step          the time of a step next to a copy of as many bytes, and to other optimizers
first_step    the time of measuring g-SNR and of the whole first step
llama         all parameters of Llama-2-7B in 16 and in 24 GB
contenders    the optimizers that `step` times
shapes        the models as lists of shapes
device        what is done in one way on a GPU and in another on the CPU of a dry run
table         figures as lines of text
"""
