"""The commands of `ralib`, a module each."""
