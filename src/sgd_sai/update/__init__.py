"""One step of Algorithm 1, written several ways behind one signature.

`reference` is the for-loop in the paper's notation. It is the truth: every other way is tested against it.
"""
