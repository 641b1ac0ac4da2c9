"""The guest, the wire protocol and the image."""
