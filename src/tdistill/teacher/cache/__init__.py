"""The teacher cache: writer, reader, manifest, and how a row's evidence becomes few bytes."""
