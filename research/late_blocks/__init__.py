"""Blocks that meet their first gradient late: does measuring them otherwise help? The page is docs/late.md.

situations.py has models and data, ways.py the optimizers and a run; `python -m research.late_blocks` runs the
study and writes a file of records for each situation, which results.py reads.
"""
