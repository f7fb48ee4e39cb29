"""Rotated and shifted images and their sums: plain PyTorch, Numba on a CPU, Triton on a GPU."""
