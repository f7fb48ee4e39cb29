"""The cases of `ralib bench`: each proves its result before its time is reported."""
