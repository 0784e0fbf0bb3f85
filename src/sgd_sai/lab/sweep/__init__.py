"""`sgd-sai sweep`: every learning rate with every weight decay, for the robustness of optimizers to both.

command       options, and the runs, several at a time
axes          the grid, which may grow
trials        its points in Optuna's storage, which several processes and machines may share
results       the grid's results, from the records of its runs
page          heat maps and surfaces of them: a page and a PNG
"""
