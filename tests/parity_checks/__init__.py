"""Parity checks, one module per part; each module defines CHECKS (kind -> check).

Tolerances other than 1e-4 are in TOLERANCES (kind -> (value, reason)) of the same module.
"""
