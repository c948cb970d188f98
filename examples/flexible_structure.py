"""Reduce a lightly damped beam and draw its Bode plot beside the small model's.

python examples/flexible_structure.py --tolerance 1e-3 --output beam.png
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np

import hsv

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--modes", type=int, default=40)
parser.add_argument("--damping", type=float, default=0.01, help="damping ratio of every mode")
parser.add_argument("--tolerance", type=float, default=1e-3, help="largest error, relative to the peak gain")
parser.add_argument("--output", default="beam.png")
args = parser.parse_args()

# A pinned beam of length 1: mode k has the shape sqrt(2) sin(k pi x) and the frequency k^2 rad/s. A force acts at
# x = 0.23, a sensor reads the displacement at x = 0.61. States: displacement and velocity of every mode.
k = np.arange(1, args.modes + 1)
frequency, shape = k**2.0, lambda x: np.sqrt(2) * np.sin(np.pi * k * x)
zero = np.zeros((args.modes, args.modes))
A = np.block([[zero, np.eye(args.modes)], [-np.diag(frequency**2), -np.diag(2 * args.damping * frequency)]])
B = np.concatenate([np.zeros(args.modes), shape(0.23)])[:, None]
C = np.concatenate([shape(0.61), np.zeros(args.modes)])[None]
beam = hsv.StateSpace(A, B, C, dt=0)

peak = hsv.hinf_norm(beam)
red = hsv.balanced_truncation(beam, hsv.ErrorBound(args.tolerance * peak))
error = hsv.hinf_error(beam, red.system)
print(f"{beam.n_states} states -> {red.system.n_states}")
print(f"error: {error / peak:.2e} of the peak gain, guaranteed {red.error_bound / peak:.2e}")

w = np.unique(np.concatenate([np.geomspace(0.2, 1.5 * frequency[-1], 2000), frequency]))
figure, (gain, phase) = plt.subplots(2, sharex=True, figsize=(8, 6), layout="constrained")
for system, style, label in (
    (beam, "C0-", f"{beam.n_states} states"),
    (red.system, "C1--", f"{red.system.n_states} states"),
):
    response = system.frequency_response(w)[:, 0, 0]
    gain.loglog(w, abs(response), style, label=label)
    phase.semilogx(w, np.degrees(np.unwrap(np.angle(response))), style, label=label)
difference = beam.frequency_response(w) - red.system.frequency_response(w)
gain.loglog(w, abs(difference)[:, 0, 0], "C3:", label="error")
gain.axhline(red.error_bound, color="grey", linewidth=0.8, label="error bound")
gain.set_ylabel("gain")
gain.legend()
phase.set(xlabel="frequency (rad/s)", ylabel="phase (degrees)")
figure.savefig(args.output, dpi=120)
print(f"Bode plot in {args.output}")
