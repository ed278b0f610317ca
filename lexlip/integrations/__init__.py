"""Bridges to other libraries, each a file; what it needs is imported only there. docs/ECOSYSTEM.md shows every one."""
