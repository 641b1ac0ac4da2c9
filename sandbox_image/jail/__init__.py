"""The walls: zygote, shim, namespaces. Runs on the host; knows nothing of models or runs."""
