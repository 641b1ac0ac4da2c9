"""The processes of a sandbox: init and the repl."""
