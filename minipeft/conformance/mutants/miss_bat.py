"""Errors of MiSS-BAT: those of `general`, and the small errors in its own code."""
