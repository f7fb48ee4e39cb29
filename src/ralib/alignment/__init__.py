"""Alignment to references: multi-reference, reference-free, and incremental for particles that still arrive."""
