"""The code interpreter: contexts, the processes that run their code, and the service on port 49999."""
