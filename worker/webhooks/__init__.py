"""Deliveries of webhooks: published when they are due, sent once claimed. Nothing here imports torch."""
