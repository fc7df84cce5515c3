"""The models of `train_images`: a network, a process, what is predicted, at which times, with which weight.

    process   denoiser                                         times                       weight of |D - x_0|^2
    ddpm      noise, 1,000 steps of linear beta                uniform on the steps        of the noise's error
    vp        noise                                            uniform on [1e-5, 1]        of the noise's error
    sub-vp    noise                                            uniform on [1e-5, 1]        of the noise's error
    ve        noise; the network is given log sigma            uniform on [1e-5, 1]        of the noise's error
    edm       c_skip x + c_out F(c_in x, log(sigma)/4)         log sigma ~ N(-1.2, 1.2^2)  1/c_out^2

Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456, appendix C; Karras et al. 2022, arXiv:2206.00364,
table 1. Classes are dropped for the null label in a share of the examples (Ho & Salimans 2022, arXiv:2207.12598).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax import networks
from dgm_jax.data import to_unit
from dgm_jax.losses import diffusion_loss
from dgm_jax.numerics import expand_to, split
from dgm_jax.parameterizations import as_denoiser, classifier_free, error_ratio, precondition
from dgm_jax.parameterizations.guidance import drop_conditions
from dgm_jax.processes import (
    GaussianProcess,
    from_betas,
    karras,
    log_normal,
    stratified,
    sub_variance_preserving,
    variance_exploding,
    variance_preserving,
)
from dgm_jax.processes import levels as at_levels
from dgm_jax.typing import Data, Denoiser, PerExample

NetworkName = Literal["smallest", "unet_8x8", "unet_28x28", "ddpm", "ddpm++", "ncsn++", "edm-ddpm++", "edm-ncsn++"]
ProcessName = Literal["ddpm", "vp", "sub-vp", "ve", "edm"]
SIGMA_DATA = 0.5  # of images in [-1, 1]
STEPS = 1000  # of DDPM's chain
TIME_SCALES = {"ve": 100.0, "edm": 400.0}  # of networks whose sinusoids expect 0 .. 1000: of log sigma, log(sigma)/4


@dataclass(frozen=True)
class ImageModel:
    """What training and sampling need to know; parameters are apart."""

    network: nn.Module
    process_name: ProcessName
    shape: tuple[int, int, int]
    levels: int
    classes: int

    @property
    def process(self) -> GaussianProcess:
        """The process of that name."""
        match self.process_name:
            case "ddpm":
                return from_betas(np.linspace(1e-4, 0.02, STEPS))
            case "vp":
                return variance_preserving()
            case "sub-vp":
                return sub_variance_preserving()
            case "ve":
                return variance_exploding(0.02, 100.0)  # 0.01 and 50 for images in [0, 1], as the paper has them
            case "edm":
                return karras()

    @property
    def t_min(self) -> float:
        """Where sampling ends, but for the last call of the denoiser."""
        return {"ddpm": 1 / STEPS, "vp": 1e-3, "sub-vp": 1e-3, "ve": 1e-5, "edm": 0.0}[self.process_name]

    def check(self) -> None:
        """Raise `ValueError` where the network cannot take images of this shape; nothing is computed."""
        jax.eval_shape(self.init, jax.random.key(0))

    def init(self, key: jax.Array) -> Any:
        """Parameters."""
        labels = (jnp.zeros(1, jnp.int32),) if self.classes else ()
        return jax.jit(self.network.init)(key, jnp.zeros((1, *self.shape)), jnp.zeros(1), *labels)

    def denoiser(self, params: Any, labels: jax.Array | None = None, dropout: jax.Array | None = None) -> Denoiser:
        """E[x_0 | x_t, label]; with `dropout`, a key for each example, as the network trains."""
        process = self.process

        def network(x_t: Data, t: PerExample) -> Data:
            condition = jnp.log(process.sigma(t)) if self.process_name == "ve" else t
            if dropout is None:
                return self.network.apply(params, x_t, condition, labels)  # type: ignore[return-value]

            # One key for each example, so that the noise does not depend on the devices that share the batch.
            def one(x_t: Any, t: Any, label: Any, key: Any) -> Any:
                rngs = {"dropout": key}
                label = None if label is None else label[None]
                return self.network.apply(params, x_t[None], t[None], label, train=True, rngs=rngs)[0]  # type: ignore

            return jax.vmap(one)(x_t, condition, labels, dropout)

        if self.process_name == "edm":
            return precondition(network, process, sigma_data=SIGMA_DATA)
        return as_denoiser(network, process, prediction="noise")

    def guided(self, params: Any, labels: jax.Array | None, scale: float) -> Denoiser:
        """Classifier-free guidance; scale 1 is the conditional model."""
        conditional = self.denoiser(params, labels)
        if labels is None or scale == 1:
            return conditional
        return classifier_free(conditional, self.denoiser(params, jnp.full_like(labels, self.classes)), scale)

    def loss(self, *, dropped: float, flip: bool) -> Callable[..., jax.Array]:
        """(params, batch, keys) -> the mean of the weighted error; half of the images are mirrored if `flip`.

        Args:
            dropped: share of the classes that the network does not see.
        """
        process = self.process
        if self.process_name == "ddpm":
            times = at_levels(np.arange(1, STEPS + 1) / STEPS)
        elif self.process_name == "edm":
            times = log_normal(process, -1.2, 1.2)
        else:
            times = stratified(1e-5)

        def edm_weight(t: PerExample) -> PerExample:
            ratio = process.noise_ratio(t)
            return (ratio**2 + SIGMA_DATA**2) / (ratio * SIGMA_DATA) ** 2

        weight = edm_weight if self.process_name == "edm" else partial(error_ratio, process, prediction="noise")

        def loss_fn(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
            key_flip, key_class, key_dropout, key_loss = split(keys, 4)
            x_0, labels = to_unit(batch["image"], levels=self.levels), None
            if flip:
                mirrored = jax.vmap(jax.random.bernoulli)(key_flip)
                x_0 = jnp.where(expand_to(mirrored, x_0), x_0[:, :, ::-1], x_0)
            if self.classes:
                labels = drop_conditions(batch["label"], jnp.int32(self.classes), key_class, rate=dropped)
            denoise = self.denoiser(params, labels, key_dropout if self.network.dropout else None)  # type: ignore
            return diffusion_loss(denoise, process, x_0, key_loss, weight=weight, times=times).mean()

        return loss_fn


def image_model(
    name: NetworkName,
    process: ProcessName,
    shape: tuple[int, int, int],
    *,
    levels: int,
    classes: int,
    dropout: float,
    dtype: str,
    remat: bool,
) -> ImageModel:
    """The model of these names, for images of `shape`."""
    match name:
        case "smallest":
            build = partial(networks.UNet, 8, (1, 2), 1, (), groups=4)
        case "unet_8x8":
            build = networks.unet_8x8
        case "unet_28x28":
            build = networks.unet_28x28
        case "ddpm":
            build = networks.ddpm_cifar10
        case "ddpm++":
            build = networks.ddpmpp_cifar10
        case "ncsn++":
            build = networks.ncsnpp_cifar10
        case "edm-ddpm++":
            build = networks.edm_ddpmpp_cifar10
        case "edm-ncsn++":
            build = networks.edm_ncsnpp_cifar10
    made_for = {"ncsn++": "ve", "edm-ddpm++": "edm", "edm-ncsn++": "edm"}.get(name)
    if made_for is not None and made_for != process:
        raise SystemExit(
            f"Expected --process {made_for} for --network {name}, as it is given that process's noise level in place "
            f"of the time; got --process {process}."
        )
    network = build(dropout=dropout, num_classes=classes or None, dtype=jnp.dtype(dtype))
    scale: dict[str, Any] = {"time_scale": TIME_SCALES[process]} if process in TIME_SCALES and not made_for else {}
    network = network.clone(remat=remat, **scale)
    return ImageModel(network, process, shape, levels, classes)
