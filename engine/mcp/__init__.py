"""MCP over sandboxes."""
