"""The report of runs: a page that opens offline, and its figures as PNGs, from their records alone.

command       `sgd-sai report`; `write`, which `sgd-sai compare` calls too
page          the page, part by part
charts        the curves on it
table         the table of results of a task
figure        the PNGs
"""
