"""Some of the existing parameters, whole or in part.

Biases, norms, some rows or some places of a matrix, or all of it: nothing is added, so a file holds what differs and the model stays as it was built.
Taken where the architecture may not change, where a few tokens are new, or, all of it, as the yardstick that others are measured by.
"""
