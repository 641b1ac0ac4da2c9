"""The guest, the wire protocol, and the image that a guest can run in."""
