"""Callbacks for training loops of other packages; each is imported from its own module, which needs the package."""
