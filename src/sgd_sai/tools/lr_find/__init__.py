"""`sgd-sai lr-find`: a learning rate for a model.

command       options; the range test on the terminal
range_test    the loss while lr rises
transfer      `--tuned`: AdamW's tuned learning rates as SGD-SaI's
page          the page of a range test, from its record alone
"""
