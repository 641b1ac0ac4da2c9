"""A user's Python functions for guest code: guest tools run inside the sandbox, host tools are called by RPC."""
