"""The one `SSE` object of this app, in a module of its own so that each example can import it."""

from sseflask import SSE

sse = SSE()
