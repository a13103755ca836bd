"""The content of volumes over HTTP, by a process with no rights but over the volume that it is handed."""
