"""Runs fusions: takes a job id from the queue, claims the job in the database, calls the core, publishes the result."""
