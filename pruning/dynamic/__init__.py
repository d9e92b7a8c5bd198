"""Gates that choose channels for each input."""
