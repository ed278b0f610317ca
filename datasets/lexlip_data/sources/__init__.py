"""What files hold: captioned images in Arrow files or tables, opened and checked. Loads no torch."""
