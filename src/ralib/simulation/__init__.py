"""Particles with known truth."""
