"""Rotated and shifted images and class sums of them: reference (plain PyTorch), Numba on a CPU, Triton on a GPU."""
