"""One module per part, found by name; each offers CHECKS (kind -> check).

Where 1e-4 does not fit, TOLERANCES (kind -> (value, reason)) of the same module says why.
"""
