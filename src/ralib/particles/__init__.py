"""Particles from a file to the device: read ahead, checked, normalised, prepared."""
