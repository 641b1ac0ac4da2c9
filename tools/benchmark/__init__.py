"""What sandboxes cost here, beside what else runs Python code on the same machine. See ``command``."""
