"""Pictures: all that needs matplotlib or pillow."""
