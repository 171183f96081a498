"""Errors of BEFT: those of `general`, and the small errors in its one sum, are all that can be made."""
