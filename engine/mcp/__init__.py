"""MCP servers over sandboxes: ``supdist-engine mcp``."""
