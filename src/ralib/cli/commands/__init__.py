"""The commands of `ralib`, one module each."""
