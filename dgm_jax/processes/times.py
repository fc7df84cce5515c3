"""Laws of training times: functions (key, batch) -> t [batch].

With one key a law may use the whole batch (stratified times cover it evenly); with one key per example the times
are independent, so that a device that holds a slice of the keys draws exactly that slice's times.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import example_keys, known, normal, typed_key
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Keys, PerExample, Size, TimeLaw


def stratified(t_min: float, t_max: float = 1.0) -> TimeLaw:
    """Uniform on [t_min, t_max]; one key gives one point in each of `batch` equal strata, in random order.

    Each stratum has its own offset; the low-discrepancy times of Kingma et al. 2021 (arXiv:2107.00630, appendix I.1)
    share one.
    """
    _check(t_min, t_max)

    def law(key: Keys, batch: Size) -> PerExample:
        return t_min + (t_max - t_min) * _stratified_uniform(key, batch)

    return law


def log_normal(process: GaussianProcess, mean: float, std: float) -> TimeLaw:
    """log(sigma/alpha) normal with the given mean and std; EDM trains with mean -1.2, std 1.2.

    Ratios beyond the process's range give its nearer end.
    Reference: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    if not (np.isfinite(mean) and 0 < std < np.inf):
        raise ValueError(f"Expected a finite mean and std > 0, as a normal law has; got {mean=}, {std=}.")

    def law(key: Keys, batch: Size) -> PerExample:
        return process.time_at(jnp.exp(mean + std * normal(key, (batch,))))

    return law


def log_snr_uniform(process: GaussianProcess, t_min: float, t_max: float) -> TimeLaw:
    """log-SNR uniform between its values at t_min and t_max, stratified with one key.

    Reference: Kingma et al. 2021, arXiv:2107.00630, section 5.1 with a linear log-SNR schedule.
    """
    _check(t_min, t_max)
    process.refuse_no_noise(t_min, "the log-SNR")
    high, low = process.log_snr(t_min), process.log_snr(t_max)

    def law(key: Keys, batch: Size) -> PerExample:
        t = process.time_at(jnp.exp(-(high + (low - high) * _stratified_uniform(key, batch)) / 2))
        return jnp.clip(t, t_min, t_max)

    return law


def levels(ts: Float[Array, " levels"] | Float[np.ndarray, " levels"]) -> TimeLaw:
    """Uniform on the given times, stratified with one key: NCSN's training at L noise levels sigma(t_i).

    Reference: Song & Ermon 2019, arXiv:1907.05600, eq. 6.
    """
    values = known(ts)
    inside = values is None or ((values >= 0) & (values <= 1)).all()
    if ts.ndim != 1 or len(ts) < 1 or not inside:
        raise ValueError(f"Expected times [levels] in [0, 1], as 0 is data and 1 is noise; got {ts}.")

    def law(key: Keys, batch: Size) -> PerExample:
        return jnp.asarray(ts)[jnp.floor(len(ts) * _stratified_uniform(key, batch)).astype(jnp.int32)]

    return law


def _stratified_uniform(key: Keys, batch: Size) -> PerExample:
    """Uniform on [0, 1): one point per stratum for one key, independent points for one key each."""
    key = typed_key(key)
    if key.ndim == 1:
        return jax.vmap(jax.random.uniform)(example_keys(key, batch))
    key_order, key_offset = jax.random.split(key)
    strata = jax.random.permutation(key_order, jnp.arange(batch, dtype=jnp.result_type(float)))
    times = (strata + jax.random.uniform(key_offset, (batch,))) / batch
    return jnp.minimum(times, 1 - jnp.finfo(times.dtype).eps)  # the last stratum may round up to 1


def _check(t_min: float, t_max: float) -> None:
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"Expected 0 <= t_min < t_max <= 1, as 0 is data and 1 is noise; got {t_min=}, {t_max=}.")
