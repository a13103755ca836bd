"""The program that runs Python cells, started by the template's own Python (>= 3.9, with IPython >= 8).

It speaks frames (`frames.py`) with the agent over one inherited socket. It imports the standard library and
IPython only, and nothing of the agent: it runs under another interpreter, of another version, in a process
that nobody trusts.
"""
