"""From the layouts that people have to Arrow files."""
