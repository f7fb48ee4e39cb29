"""Conversions to and from other libraries: scikit-learn, pandas, xarray, napari.

Imports nothing of the package, and each library only when it is needed.
"""
