"""The tests. The tree mirrors the tree of sources; helpers that several tests share stand beside this file."""
