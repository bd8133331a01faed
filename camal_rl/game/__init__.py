"""The ViZDoom engine and what it draws."""
