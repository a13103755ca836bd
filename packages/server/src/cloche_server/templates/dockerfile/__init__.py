"""From a Dockerfile and the folder beside it to a template's description and the archives it copies from."""
