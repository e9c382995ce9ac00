"""Looks at untrusted headers in child processes with limits on memory and time; the API itself never parses one.

A legal header of 10 MB with 150,000 tensors takes seconds and hundreds of megabytes, so it is read where both are bounded
and given back. Knows the core's preflight, and nothing of HTTP resources or the database.
"""
