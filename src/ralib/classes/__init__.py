"""Class averages, assignment to classes, and figures of merit of a set of classes."""
