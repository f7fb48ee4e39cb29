"""The pose search's kernels: plain PyTorch, Numba on a CPU, Triton on a GPU."""
