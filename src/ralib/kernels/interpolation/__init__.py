"""Rotated and shifted images and their class sums: `reference` (plain PyTorch), Numba on a CPU, Triton on a GPU."""
