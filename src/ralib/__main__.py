"""The command `ralib`, `python -m ralib`, and what torchrun starts."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from typing import NoReturn


def program() -> NoReturn:
    """Run the command line and end the process with its status.

    Python looks for garbage again and again among the half million objects that PyTorch makes while it loads, and once
    more at the end; none of them is any. Not looking saves a third of a short command's time.

    PyTorch's threads would spin while they wait for each other; on a core that is shared, what they wait for is then
    held up by the spinning. It is settled when PyTorch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not os.environ.get("RALIB_DEBUG"):
        warnings.simplefilter("ignore")  # of libraries, to programmers
    gc.disable()
    from ralib.cli import main

    gc.freeze()
    gc.enable()
    status = main()
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    program()
