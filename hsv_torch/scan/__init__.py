"""Linear recurrences and diagonal state-space models over a time axis, each behind one entry point."""

from hsv_torch.scan._diagonal import choose_mode, diagonal_state_space

__all__ = ["choose_mode", "diagonal_state_space"]
