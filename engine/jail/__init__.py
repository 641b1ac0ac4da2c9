"""The host's side of a sandbox that is a process: the zygote, the shim, and the limits that they apply."""
