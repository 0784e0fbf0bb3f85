"""One constant a block: how much of AdamW it reaches, and by which constants. The page is docs/beyond.md.

blockwise.py has the optimizers; search.py, prove.py and gradients.py run the experiments, one after another,
and write `records`, which results.py reads.
"""
