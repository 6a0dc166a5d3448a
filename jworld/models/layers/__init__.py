"""Building blocks shared by two or more networks."""
