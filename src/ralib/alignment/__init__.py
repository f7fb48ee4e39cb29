"""Alignment to references: multi-reference and reference-free."""
