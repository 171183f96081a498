"""Changes of weights with another structure: Hadamard products, Fourier series, shared projections.

ΔW is made of few numbers otherwise than by two thin factors: of full rank with as few numbers as a low rank has, or with far fewer, since the
large parts are random and frozen. Taken where the size of a file is what counts, or where low rank is too narrow. All merge.
"""
