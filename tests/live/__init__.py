"""Tests against real servers: each starts its own on a free port, talks to it over real sockets and stops it."""
