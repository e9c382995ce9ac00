"""Resumable uploads: tus 1.0, core, with creation, creation-with-upload, checksum, expiration and termination.

Written here, as the Python package for tus servers blocks the whole event loop when a client comes again. Whatever touches a
disk or a database runs in threads of its own; between the pieces of a slow client no thread waits. A complete upload
becomes an uploaded file exactly as one that was PUT.
"""
