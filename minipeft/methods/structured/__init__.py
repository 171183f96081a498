"""Changes of weights with another structure: Hadamard products, Fourier series, shared projections."""
