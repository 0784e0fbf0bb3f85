"""`sgd-sai gsnr`: g-SNR and updates of a model, block by block.

command       options, the table on the terminal
record        the record of the first gradient, and its sentences
gains         G_snr and local gains while several optimizers train
cost          the time that `GSNRRecorder` adds to a training step
page          the page, from the record alone
"""
