"""The commands that look at a model of the lab or of the user's own.

gsnr/         `sgd-sai gsnr`: g-SNR and updates, block by block, at the first gradient and over time
lr_find/      `sgd-sai lr-find`: a range test, or AdamW's tuned learning rates transferred
workload      a model, its batches and its loss: a task of the lab, or the user's `module:factory`
options       the arguments that both commands have
output        their JSON, files, progress
"""
