"""Alignment to references: multi-reference, reference-free, and particles that keep arriving."""
