"""Fusions: recipes accepted, jobs followed, traces and artifacts served.

Checks a recipe against headers and hands the job on by its row in the database. Knows nothing of who runs it, or how.
"""
