"""Kernel program for languages whose cells run in a process, or a library, that it drives.

Run by the template's own python3 as `python3 <this folder> BACKEND [ARGUMENT] FD`: nothing here may import
the agent, and only `jupyter.py` anything beyond the standard library.
"""
