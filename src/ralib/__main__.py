"""`python -m ralib`, which is also what torchrun starts."""

import sys

from ralib.cli import main

sys.exit(main())
