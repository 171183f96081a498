"""Errors of training everything: its change is its one array, so those of `general` are all that can be made."""
