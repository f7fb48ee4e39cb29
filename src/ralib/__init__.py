"""Cryo-RAlib: 2D alignment, classification and averaging of cryo-EM particle images on GPUs and CPUs."""

__version__ = "0.1.0"
