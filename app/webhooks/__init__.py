"""Addresses that are told of events, and what became of every message to them. Sending is the worker's part."""
