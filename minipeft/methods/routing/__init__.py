"""Choosing among several adapters, by task or by token.

A gate mixes adapters that were trained before or are trained with it. The change depends on the input, so it is no weight and is not
merged. Taken where there are several tasks whose kinship is not known beforehand, or a library of adapters to be used again.
"""
