"""Alembic's entry: run the migrations on the connection that `session.Database.migrate` hands over."""

from alembic import context

from cloche_server.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
