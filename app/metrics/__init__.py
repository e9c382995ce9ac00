"""Prometheus metrics, on a port of their own, never on the public one.

Every process serves what it alone knows: the API its requests, the worker its GPU. What is about jobs is read from the
database, by the dispatcher alone (there may be many APIs and workers, and sums would count everything again for each).
Names of labels are few and their values bounded: route templates, states, methods; never ids.
"""
