"""Parameters on many ranks.

layout        the part of a DTensor that a rank holds
wrappers      ZeroRedundancyOptimizer and PostLocalSGDOptimizer around this one
collectives   sums, the largest G_snr and errors across ranks, while blocks are without a scale
"""
