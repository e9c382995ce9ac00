"""The doors: HTTP, storage, database, command line, client. torch must not enter here, directly or through anything."""
