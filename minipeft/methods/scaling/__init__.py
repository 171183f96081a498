"""Scaling and shifting what flows.

A vector for each activation, or an edit of it within a small subspace: the fewest numbers of all, and a change that reads easily.
A scale of outputs merges into the weight. Taken with very little data, where a task differs from what the base was trained for
in emphasis and not in kind.
"""
