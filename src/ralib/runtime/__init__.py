"""The machine: ranks of a distributed run, memory."""
