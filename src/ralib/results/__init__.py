"""What a run leaves in its folder: results, checkpoints, selections, summaries."""
