"""The package's objects as other libraries know them: scikit-learn, pandas, xarray, napari. A leaf: it imports nothing
of the package, and each library only when it is asked for."""
