"""The processes of a sandbox: init (PID 1) and the repl."""
