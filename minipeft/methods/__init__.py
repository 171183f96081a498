"""All methods, one file each. A file is found by being here; nothing lists it."""
