"""The commands beside serving, a file each: `run(project)` does it and returns the exit status.

`arguments.py` has the words of their command lines. A command is imported when it is asked for.
"""
