"""Choosing among several adapters, by task or by token."""
