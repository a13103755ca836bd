"""Images of registries: fetched by a program without rights, its network one gate of ours."""
