"""A run's folder and its contents: results, checkpoints, selections, comparisons, summaries."""
