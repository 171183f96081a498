"""Rotations of weights and of their subspaces."""
