"""Where tests run: on the CPU, and on a GPU where there is one. `pytest -k cuda` runs those alone."""

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: PyTorch finds none")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
