"""Simulated particles with known truth."""
