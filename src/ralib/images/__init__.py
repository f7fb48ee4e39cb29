"""The mathematics of image stacks; knows no particles and no files."""
