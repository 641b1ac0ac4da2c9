"""What is not the engine: the wire protocol, the guest, and the jail that the guest runs in."""
