"""Some of the existing parameters, whole or in part."""
