"""The code interpreter: contexts, executions and their results."""
