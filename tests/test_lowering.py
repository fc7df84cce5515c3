"""What a device computes lowers for a TPU and for CUDA, on a machine that has neither.

Lowering stops at StableHLO, which a device's compiler is handed: operations without a rule there, and calls back to the
host, which no export holds, show here. What the compilers make of it does not.
"""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_cases import EVERY, arguments
from inception_weights import weights as inception_weights

from dgm_jax import metrics, networks
from dgm_jax.losses import diffusion_loss, minimax
from dgm_jax.losses import weights as loss_weights
from dgm_jax.networks.inception import inception_features
from dgm_jax.parameterizations import as_denoiser
from dgm_jax.processes import cosine
from dgm_jax.training import Players, init_adversarial_state, init_state, parallel

ELSEWHERE = ("tpu", "cuda")


def of(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def lower(function, *args):
    """Lower the function for both platforms, or raise."""
    exported = jax.export.export(jax.jit(function), platforms=ELSEWHERE)(*args)
    assert exported.platforms == ELSEWHERE


def test_a_call_of_the_host_is_refused():
    with pytest.raises(NotImplementedError, match="callback"):
        lower(lambda x: jax.pure_callback(np.sin, x, x), of(2))


@pytest.mark.parametrize("name", EVERY)
def test_losses_samplers_and_likelihoods(name):
    lower(EVERY[name], *arguments())


IMAGES, TIMES, LATENTS = of(2, 8, 8, 3), of(2), of(2, 5)
NETWORKS = {
    "MLP": (networks.MLP((8,), embedding=4, num_classes=3), of(2, 3), TIMES, of(2, dtype=np.int32)),
    "DDPM's U-Net": (networks.ddpm_cifar10(), of(2, 32, 32, 3), TIMES),
    "NCSN++": (networks.ScoreUNet(8, (1, 2), 1, (4,), 0.1, True, remat=True), of(2, 8, 8, 3), TIMES),
    "DDPM++": (networks.ScoreUNet(8, (1, 2), 1, (4,), 0.1), of(2, 8, 8, 3), TIMES),
    "DDPM's U-Net in bfloat16": (networks.ddpm_cifar10(dtype=jnp.bfloat16), of(2, 32, 32, 3), TIMES),
    "U-Net with labels and patches": (
        networks.UNet(4, (1, 2), 1, groups=2, num_classes=3, patch=2),
        IMAGES,
        TIMES,
        of(2, dtype=np.int32),
    ),
    "DenseEncoder": (networks.DenseEncoder((8,), 5), IMAGES),
    "DenseDecoder": (networks.DenseDecoder((8,), (8, 8, 3)), LATENTS),
    "ConvEncoder": (networks.ConvEncoder((4, 8), 5, 8), IMAGES),
    "ConvDecoder": (networks.ConvDecoder((8, 4), (8, 8, 3), 8), LATENTS),
    "SpatialEncoder": (networks.SpatialEncoder((4, 8), 2, groups=2), IMAGES),
    "SpatialDecoder": (networks.SpatialDecoder((8, 4), 3, groups=2), of(2, 4, 4, 2)),
    "DCGANGenerator": (networks.DCGANGenerator((8, 4), (8, 8, 3)), LATENTS),
    "DCGANCritic": (networks.DCGANCritic((4, 8), networks.InstanceNorm), IMAGES),
    "DenseGenerator": (networks.DenseGenerator((8,), (8, 8, 3)), LATENTS),
    "DenseCritic": (networks.DenseCritic((8,)), IMAGES),
    "TextEncoder": (networks.TextEncoder(7, 8, 4, heads=2), of(2, 4, dtype=np.int32)),
    "MonotoneSchedule": (networks.MonotoneSchedule(10.0, -5.0), TIMES),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_their_gradients(name):
    net, *args = NETWORKS[name]
    params = jax.eval_shape(net.init, jax.random.key(0), *args)

    def total(params, *args):
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(net.apply(params, *args)))

    lower(jax.value_and_grad(total), params, *args)


def test_a_u_net_with_context():
    net = networks.UNet(4, (1, 2), 1, groups=2, context_attention=(4,))

    def apply(params, x_t, t, context):
        return net.apply(params, x_t, t, context=context)

    context = of(2, 3, 4)
    lower(
        apply,
        jax.eval_shape(partial(net.init, jax.random.key(0)), IMAGES, TIMES, context=context),
        IMAGES,
        TIMES,
        context,
    )


def test_every_network_is_lowered():
    """All that the package exports and that is a network by itself, not a layer of one."""
    layers = {"Conditioning", "CrossAttention", "Downsample", "GroupNorm", "InstanceNorm", "ResidualBlock"}
    layers |= {"SelfAttention", "Text", "Upsample"}
    known = {name for name in networks.__all__ if name[0].isupper()}
    assert known - layers - {type(net).__name__ for net, *_ in NETWORKS.values()} == set()


def test_inceptions_features_and_spectral_norms():
    weights = jax.tree.map(lambda leaf: of(*leaf.shape), inception_weights())
    lower(inception_features, weights, of(2, 139, 155, 3))
    lower(partial(networks.spectral_normalize, iterations=3), {"kernel": of(3, 3, 4, 8), "bias": of(8)})


UNET = networks.UNet(4, (1, 2), 1, (4,), groups=2, dropout=0.1)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def unet_loss(params, batch, keys):
    process = cosine()

    def network(x_t, t):
        return UNET.apply(params, x_t, t, train=True, rngs={"dropout": keys[0]})

    denoise = as_denoiser(network, process, prediction="noise")
    return diffusion_loss(denoise, process, batch, keys, weight=partial(loss_weights.simple, process)).mean()


def stacked(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((8, *leaf.shape), leaf.dtype), tree)


def test_the_step_of_a_u_net_on_eight_devices():
    batch = of(16, 8, 8, 3)
    params = jax.eval_shape(UNET.init, jax.random.key(0), batch, of(16))
    state = jax.eval_shape(lambda params: init_state(params, OPTIMIZER, jax.random.key(0)), params)
    for shards in (1, 4):
        mesh = parallel.data_mesh(parameter_shards=shards)
        lower(parallel.mesh_step(unet_loss, OPTIMIZER, ema_decay=0.9, mesh=mesh), state, batch)
    by_pmap = parallel.pmap_step(unet_loss, OPTIMIZER, ema_decay=0.9)
    lower(by_pmap, stacked(state), of(8, 2, 8, 8, 3))


def test_the_step_of_two_players_on_eight_devices():
    generator, critic = networks.DenseGenerator((8,), (3,)), networks.DenseCritic((8,))
    optimizers = Players(OPTIMIZER, OPTIMIZER)

    def logits(players, batch, keys):
        z = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        fake = generator.apply(players.generator, z)
        return critic.apply(players.discriminator, batch), critic.apply(players.discriminator, fake)

    losses = Players(
        discriminator=lambda players, batch, keys: minimax.discriminator(*logits(players, batch, keys)).mean(),
        generator=lambda players, batch, keys: minimax.generator(*logits(players, batch, keys)).mean(),
    )

    def fresh(key):
        players = Players(critic.init(key, jnp.zeros((2, 3))), generator.init(key, jnp.zeros((2, 5))))
        return init_adversarial_state(players, optimizers, key)

    state, options = jax.eval_shape(fresh, jax.random.key(0)), {"critic_steps": 2, "ema_decay": 0.9}
    mesh = parallel.data_mesh()
    lower(parallel.mesh_adversarial_step(losses, optimizers, mesh=mesh, **options), state, of(32, 3))
    lower(parallel.pmap_adversarial_step(losses, optimizers, **options), stacked(state), of(8, 4, 3))


def test_samplers_on_eight_devices():
    def sampler(params, keys, x):
        return EVERY["sample_sde, noise"](params, x, keys)

    params, x, keys = arguments()
    lower(parallel.pmap_sampler(sampler), params, keys, x)
    lower(parallel.mesh_sampler(sampler, parallel.data_mesh()), params, keys, x)


KERNEL = metrics.gaussian(1.0)
LABELS = jnp.asarray(np.arange(20) % 2)
METRICS = {
    "mmd": lambda x, y, key: metrics.mmd(x, y, kernel=metrics.rational_quadratic(0.5, 1.0)),
    "block_mmd": lambda x, y, key: metrics.block_mmd(x, y, kernel=metrics.laplace(1.0), block=4),
    "energy_distance": lambda x, y, key: metrics.energy_distance(x, y),
    "kernel_distance": lambda x, y, key: metrics.kernel_distance(x, y, key, subset_size=8),
    "mmd_test": lambda x, y, key: metrics.mmd_test(x, y, key, permutations=9),
    "energy_test": lambda x, y, key: metrics.energy_test(x, y, key, permutations=9),
    "permutation_test": lambda x, y, key: metrics.permutation_test(
        lambda x, y: jnp.abs(x.mean() - y.mean()), x, y, key, permutations=9
    ),
    "wild_mmd_test": lambda x, y, key: metrics.wild_mmd_test(x, y, key, draws=9),
    "relative_mmd_test": lambda x, y, key: metrics.relative_mmd_test(x, y, y[::-1] + 1, kernel=KERNEL),
    "conditional_mmd_test": lambda x, y, key: metrics.conditional_mmd_test(x, LABELS, y, LABELS, key, permutations=9),
    "classifier_test, logistic": lambda x, y, key: metrics.classifier_test(
        x, y, key, fit=metrics.logistic(penalty=1.0)
    ),
    "classifier_test, neighbours": lambda x, y, key: metrics.classifier_test(
        x, y, key, fit=metrics.nearest_neighbours(3)
    ),
    "classifier_test, mlp": lambda x, y, key: metrics.classifier_test(
        x, y, key, fit=metrics.mlp((4,), steps=3, rate=0.1)
    ),
    "memorization_test": lambda x, y, key: metrics.memorization_test(x, y, y[::-1] + 1),
    "sliced_wasserstein": lambda x, y, key: metrics.sliced_wasserstein(x, y, key, projections=5),
    "precision_recall": lambda x, y, key: metrics.precision_recall(x, y, k=3),
    "density_coverage": lambda x, y, key: metrics.density_coverage(x, y, k=3),
    "nearest": lambda x, y, key: metrics.nearest(x, y, k=2),
    "nearest_other": lambda x, y, key: metrics.nearest_other(x, k=2),
    "frechet_of": lambda x, y, key: metrics.frechet_of(x, y),
    "modes_captured": lambda x, y, key: metrics.modes_captured(x, y, radius=1.0),
    "mode_shares_test": lambda x, y, key: metrics.mode_shares_test(
        metrics.nearest_mode(x, y[:2])[0], key, weights=jnp.array([0.25, 0.75]), draws=9
    ),
    "duplicate_pairs": lambda x, y, key: metrics.support_size(metrics.duplicate_pairs(x, radius=0.1), len(x)),
    "inception_score": lambda x, y, key: metrics.inception_score(jax.nn.softmax(x, axis=1)),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    lower(METRICS[name], of(20, 3), of(20, 3), jax.random.key(0))
