"""Training of any loss: the state, the step, the loop, checkpoints, and many devices."""

from dgm_jax.training import parallel
from dgm_jax.training.adversarial import (
    Players,
    clip_weights,
    init_adversarial_state,
    make_adversarial_step,
    make_extragradient_step,
    make_simultaneous_step,
    pack,
    unrolled,
)
from dgm_jax.training.checkpoint import Checkpoints, load_params, saved_steps
from dgm_jax.training.loop import train
from dgm_jax.training.post_hoc import power_decay, reconstruct, reconstruction_error, reconstruction_weights
from dgm_jax.training.preemption import Preempted
from dgm_jax.training.state import TrainState, init_state
from dgm_jax.training.step import ema_warmup, make_step, with_example_keys
