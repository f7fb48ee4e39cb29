"""Class averages, assignment, and the figures that judge a set of classes."""
