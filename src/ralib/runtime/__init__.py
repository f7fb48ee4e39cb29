"""The machine: processes of a distributed run, and memory."""
