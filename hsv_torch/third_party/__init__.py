"""Adapters for layers of other packages, one module a package: importing the module registers its adapters."""
