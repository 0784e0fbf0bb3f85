"""Parameters on many ranks.

layout        the part of a DTensor that a rank holds
collectives   sums, the largest G_snr and errors across ranks, while blocks are without a scale
"""
