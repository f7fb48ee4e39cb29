"""What `ralib bench` measures: each case proves its answer before its time is told."""
