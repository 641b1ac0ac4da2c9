"""Users' tools for guest code."""
