"""What runs inside the walls: init (PID 1) and the repl."""
