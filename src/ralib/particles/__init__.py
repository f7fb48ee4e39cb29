"""Particles on their way from a file to the device: read ahead, checked, prepared."""
