"""Everything of Cloche that runs inside a sandbox: processes, files and the code interpreter."""
