"""Small heads on frozen towers: the towers are named, the heads are trained; docs/FROZEN.md tells when that pays."""
