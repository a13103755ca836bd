"""How a Dockerfile is refused."""

from cloche_wire.errors import InvalidArgument


class DockerfileError(InvalidArgument):
    """It cannot be built here; the message begins with the number of the line."""


def refuse(line: int, why: str, hint: str | None = None) -> DockerfileError:
    """Return the error for what stands in a line, counted from 1."""
    return DockerfileError(f"line {line}: {why}", hint=hint)
