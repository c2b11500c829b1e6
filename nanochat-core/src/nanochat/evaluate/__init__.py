"""How good a model is: bits per byte and the CORE metric."""
