"""Numbers of blocks for launching kernels: outside of one, Triton's functions of these names take microseconds."""

from __future__ import annotations


def ceil_div(n: int, size: int) -> int:
    """Return the number of blocks of a size that hold n.

    Parameters
    ----------
    n, size : int
        How many, and how many in a block.

    Returns
    -------
    int
        n / size, rounded up.
    """
    return -(-n // size)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is not below n.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    int
        1, 2, 4 and so on.
    """
    return 1 << (n - 1).bit_length()
