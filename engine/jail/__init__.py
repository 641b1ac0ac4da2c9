"""The host side of the process backend: zygote, shims, isolation."""
