"""What `make install` does; uses the standard library only."""
