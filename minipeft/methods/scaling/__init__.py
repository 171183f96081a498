"""Scaling and shifting what flows."""
