"""The tables of the reproduction: what each one trains, and how it is shown."""
