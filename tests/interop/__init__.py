"""Clients that no one here wrote, against the real server."""
