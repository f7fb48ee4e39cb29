"""The pose search: every particle against every reference, rotation, mirror and shift."""
